"""The tables of options and families in hepti_mpi/commands/README.md, made from the program itself; a test says whether they are current.

python tests/options_tables.py
"""

import re
from pathlib import Path

import click

from hepti_mpi.commands.main import main
from hepti_mpi.models.checkpoints.random import CONFIGS, PREFIX
from hepti_mpi.models.families.registry import FAMILIES

PAGE = Path(__file__).parent.parent / "hepti_mpi" / "commands" / "README.md"
PLACE = re.compile(r"(<!-- options of (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
LISTED = re.compile(r"(<!-- list of (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
HEAD = "| option | |\n|---|---|\n"
VALUES = {"integer range": "N", "float range": "X", "text": "TEXT", "path": "PATH", "choice": "NAME"}


def spelling(option: click.Option) -> str:
    """Return the names of an option and what follows them: `--rows N`."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = option.metavar or VALUES.get(option.type.name, option.type.name.upper())
    return names if option.is_flag else f"{names[:-1]} {value}`"


def meaning(option: click.Option) -> str:
    """Return the help of an option, with what it may be and what it is when left out."""
    said = [option.help or ""]
    if isinstance(option.type, click.Choice):
        said.append("One of " + ", ".join(f"`{choice}`" for choice in option.type.choices) + ".")
    if option.show_default:
        default = f"{option.default:g}" if isinstance(option.default, float) else option.default
        said.append(f"Left out: `{default}`.")
    if option.required:
        said.append("Required.")
    return " ".join(said)


def table(verb: str) -> str:
    """Return the table of one command's options, but for those that all have."""
    parameters = main.commands[verb].params
    options = [option for option in parameters if isinstance(option, click.Option) and option.expose_value and not option.hidden]
    rows = [f"| {spelling(option)} | {meaning(option)} |\n" for option in options]
    return "".join([HEAD, *rows])


def listed(what: str) -> str:
    """Return the table of "families" by model_type, or of the shapes of "random" models."""
    if what == "random":
        return "\n" + ", ".join(f"`{PREFIX}{name}`" for name in CONFIGS) + ".\n\n"
    rows = [f"| `{kind}` | {', '.join(family.architectures)} |\n" for kind, family in FAMILIES.items()]
    return "".join(["| `model_type` | `architectures` |\n|---|---|\n", *rows])


def filled(page: str) -> str:
    """Return the page with each table made anew."""
    page = LISTED.sub(lambda place: f"{place[1]}{listed(place[2])}{place[4]}", page)
    return PLACE.sub(lambda place: f"{place[1]}{table(place[2])}{place[4]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
