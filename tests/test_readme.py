"""The pages against the program: commands that exist, paths that exist."""

import re
import shlex
from pathlib import Path

import click
import pytest
from lab.__main__ import _parser as lab_parser
from lab.clusters import read_clusters

from hepti_mpi.commands import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "weights/README.md", *sorted(f"jobs/{path.name}" for path in (ROOT / "jobs").iterdir() if path.suffix != ".txt")]
# options of mpirun, rsync, sbatch and tests/fuzz.py in README.md
FOREIGN = {"--mca", "--prefix", "--exclude", "--nodes", "--array", "--inputs"}


def commands_in(text: str, module: str = "hepti_mpi") -> list[list[str]]:
    """Return the words after `python -m hepti_mpi` of every command, up to the end of its line, code span or pipeline."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for match in re.finditer(rf'python"? -m {re.escape(module)} ([^`]*)', line):
            lexer = shlex.shlex(match[1], posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = []
            for word in lexer:
                if set(word) <= set("();<>|&"):
                    break
                words.append(word)
            if words:
                found.append([word for word in words if word != "..." and word not in ("$@", "${ARGS:-}", "${resume[@]}")])
    return found


def parse(words: list[str]) -> None:
    """Parse a command without running it; one without arguments names a verb only. Raises click's errors."""
    with click.Context(main.main, info_name="hepti_mpi", **main.main.context_settings) as context:
        _, verb, rest = main.main.resolve_command(context, words)
        assert verb is not None
        if rest:
            verb.make_context(verb.name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    for words in commands_in((ROOT / page).read_text()):
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{page}: python -m hepti_mpi {' '.join(words)}: {error.format_message()}")


def test_commands_are_found():
    assert ["run"] in commands_in(README)
    assert commands_in('x "$PWD/.venv/bin/python" -m hepti_mpi run --weights "$store" | tee y') == [["run", "--weights", "$store"]]
    with pytest.raises(click.ClickException):
        parse(["run", "--wieghts", "x.h5"])
    with pytest.raises(click.ClickException):
        parse(["bnech"])


def lab_options() -> set[str]:
    """Return the options of all commands of the lab."""
    verbs = next(action.choices for action in lab_parser()._actions if action.choices)
    return {name for verb in verbs.values() for name in verb._option_string_actions if name.startswith("--")} - {"--help"}


def test_commands_of_the_lab_parse():
    found = commands_in(README, "tests.lab")
    assert ["check"] in found
    for words in found:
        try:
            options = lab_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"python -m tests.lab {' '.join(words)}")
        if words[0] == "run" and options.program is None:
            parse(words[words.index("--") + 1 :])


def test_clusters_of_the_lab():
    pytest.importorskip("tomllib", reason="new in Python 3.11")
    for cluster in read_clusters().values():
        boards, rates = [host.board for host in cluster.hosts], [f"{host.mbit:g}" for host in cluster.hosts]
        shown = rates[0] if len(set(rates)) == 1 else ", ".join(rates)
        assert f"| `{cluster.name}` | {', '.join(boards)} | {shown} |" in README


def test_options_are_those_of_the_program():
    options = [option for verb in main.main.commands.values() for option in verb.params if not getattr(option, "hidden", False)]
    known = {name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}
    known |= lab_options()
    assert not known - set(re.findall(r"--[a-z][a-z-]*", README)), "options that README.md does not mention"
    code = "\n".join(re.findall(r"```\w*\n.*?```|`[^`\n]+`", README, re.DOTALL))
    assert not set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", code)) - known - FOREIGN, "options that do not exist"


def test_links_and_paths_lead_somewhere():
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in re.findall(r"^#+ (.*)", README, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target[1:] in anchors if target.startswith("#") else (ROOT / target).exists(), target
    for path in re.findall(r"(?<![\w/.-])(?:jobs|tests|hepti_mpi)/[\w./-]*\w", README):
        assert (ROOT / path).exists(), path
