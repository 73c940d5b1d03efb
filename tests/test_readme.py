"""The pages against the program: commands and options that exist, paths and links that lead somewhere, tables that are current."""

import re
import shlex
from pathlib import Path

import click
import options_tables
import pytest
from lab.__main__ import _parser as lab_parser
from lab.clusters import read_clusters
from test_layout import LEVELS

from hepti_mpi.commands import main

ROOT = Path(__file__).parent.parent
ROOMS = ("commands", "comm", "planning", "serving", "supervisor")
READMES = [
    "README.md",
    *(f"{folder}/README.md" for folder in ("hepti_mpi", *(f"hepti_mpi/{room}" for room in ROOMS), "hostfiles", "jobs", "weights")),
    *(f"{folder}/README.md" for folder in ("tests", "tests/lab", "tests/lab/results")),
]
SCRIPTS = sorted(f"{path.parent.name}/{path.name}" for path in [*(ROOT / "jobs").iterdir(), *(ROOT / "hostfiles").glob("*.txt")])
PAGES = [*READMES, *(script for script in SCRIPTS if script not in READMES and script != "jobs/minilm.txt")]
TEXT = "\n".join((ROOT / page).read_text() for page in READMES)
# options of mpirun, rsync, sbatch and the scripts of tests/
FOREIGN = {"--serve", "--help", "--mca", "--prefix", "--exclude", "--nodes", "--array", "--inputs", "--text"}


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
    assert ["run"] in commands_in(TEXT)
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
    found = commands_in(TEXT, "tests.lab")
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
    page = (ROOT / "tests/lab/README.md").read_text()
    for cluster in read_clusters().values():
        described = cluster.in_slow_motion(1)
        boards, rates = [host.board for host in described.hosts], [f"{host.mbit:g}" for host in described.hosts]
        shown, slow = rates[0] if len(set(rates)) == 1 else ", ".join(rates), "" if cluster.slow == 1 else f"{cluster.slow:g} "
        assert f"| `{cluster.name}` | {', '.join(boards)} | {shown} | {slow}|" in page


def test_options_are_those_of_the_program():
    options = [option for verb in main.main.commands.values() for option in verb.params if not getattr(option, "hidden", False)]
    known = {name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}
    known |= lab_options()
    assert not known - set(re.findall(r"--[a-z][a-z-]*", TEXT)), "options that no page mentions"
    code = "\n".join(re.findall(r"```\w*\n.*?```|`[^`\n]+`", TEXT, re.DOTALL))
    assert not set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", code)) - known - FOREIGN, "options that do not exist"


def test_tables_of_options_are_current():
    page = options_tables.PAGE.read_text()
    assert options_tables.filled(page) == page, "make them anew: python tests/options_tables.py"
    shown = {place[2] for place in options_tables.PLACE.finditer(page)}
    verbs = [name for name, verb in main.main.commands.items() if not verb.hidden]
    assert {verb for verb in verbs if options_tables.table(verb) != options_tables.HEAD} == shown, "commands with a table"


def anchors(page: Path) -> set[str]:
    """Return what links may name of a page: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", READMES)
def test_links_and_paths_lead_somewhere(page):
    place, text = ROOT / page, (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        path = place.parent / name if name else place
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
    for path in re.findall(r"(?<![\w/.-])(?:jobs|tests|hepti_mpi)/[\w./-]*\w", re.sub(r"\]\([^)]+\)", "", text)):
        assert (ROOT / path).exists(), path


def test_each_page_is_found_from_the_first():
    seen, left = set(), ["README.md"]
    while left:
        page = left.pop()
        if page not in seen:
            seen.add(page)
            folder = (ROOT / page).parent
            targets = re.findall(r"\]\(([^)#]+\.md)", (ROOT / page).read_text())
            left += [(folder / target).resolve().relative_to(ROOT.resolve()).as_posix() for target in targets]
    assert set(READMES) <= seen


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_rooms_are_those_of_the_layout():
    table = re.search(r"^\| room \|.*?\n\n", (ROOT / "hepti_mpi/README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert table is not None
    assert [tuple(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table[0].splitlines()[2:] if row] == LEVELS
