"""What is shown, and where: quiet, JSON, terminals; and completion by the shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from clusters import cluster
from terminals import ESCAPE, on_a_terminal

from hepti_mpi.commands import main, screen, terminal
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.reporting.generation import generation_record
from hepti_mpi.weights import writing

PAGE = Path(__file__).parent.parent / "hepti_mpi/commands/README.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    writing.write(folder / "tiny.h5", random_model("tiny-bert"))
    cluster((9, 7, 8)).save(folder / "three.json")
    return folder


def words(folder, name):
    return {
        "inspect": ["inspect", str(folder / "tiny.h5")],
        "plan": ["plan", "--weights", str(folder / "tiny.h5"), "--profile", str(folder / "three.json"), "--strategy", "tensor"],
        "run": ["run", "--weights", str(folder / "tiny.h5")],
    }[name]


def check_page(document):
    """Each key of a document that a program may read is explained on the page."""
    section = re.search(r"### The document of a run.*?## Chat", PAGE.read_text(), re.DOTALL)
    told = set(re.findall(r"`(\w+)`", section[0])) | {f"{what}_seconds" for what in ("compute", "wire", "wait")}
    assert not set(document) - told
    for part in [one for value in document.values() for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]:
        assert not set(part) - told


def test_the_document_of_texts_is_on_the_page():
    check_page(generation_record(random_model("tiny-llama").spec, [], 1.0))


@pytest.mark.parametrize("name", ["inspect", "plan"])
def test_plain_where_there_is_no_terminal(made, name):
    result = CliRunner().invoke(main.main, words(made, name))
    assert result.exit_code == 0 and not ESCAPE.search(result.output)
    assert name != "plan" or ("█" not in result.output and "rank 2 on" in result.output)


@pytest.mark.parametrize("name", ["inspect", "plan"])
def test_json_is_one_document_and_nothing_else(made, name):
    result = CliRunner().invoke(main.main, [*words(made, name), "--json"])
    data = json.loads(result.stdout)
    assert data["format_version"] == 1 and data["format"] == {"inspect": "hepti-inspection", "plan": "hepti-decision"}[name]
    if name == "plan":
        assert data["plan"]["strategy"] == "tensor" and len(data["candidates"][0]["compute_seconds"]) == 3
    else:
        assert data["spec"]["hidden"] == random_model("tiny-bert").spec.hidden and data["fullest_rank_bytes"]["tensor"]["2"] > 0
    assert CliRunner().invoke(main.main, [*words(made, name), "--quiet"]).output == ""


def test_a_run_in_json_and_quietly(made):
    def lines(*more):
        command = [sys.executable, "-m", "hepti_mpi", *words(made, "run"), *more]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=made, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    (made / "hostfiles").mkdir(exist_ok=True)
    shown, _ = lines("--json")
    every = [json.loads(line) for line in shown]
    assert every[-1]["format"] == "hepti-run" and len(every) == every[-1]["requests"] + 1 and all("input" in one for one in every[:-1])
    check_page(every[-1])
    told = every[-1]  # a short batch warms up, which is start-up: all speeds are of the same seconds
    assert told["startup_seconds"]["warm_up"] > 0 and told["seconds"] >= told["batches"]["seconds"] * (1 - 1e-5)
    assert told["requests"] / told["seconds"] == pytest.approx(told["requests_per_second"], rel=1e-4)
    quiet, said = lines("--quiet")
    assert len(quiet) == len(every) - 1 and not said and not any(line.startswith(("{", "plan ")) for line in quiet)


@pytest.mark.parametrize("columns", [40, 52, 60, 80, 120])
def test_a_plan_is_drawn_on_a_terminal(made, columns):
    code, shown = on_a_terminal(words(made, "plan"), columns)
    text = ESCAPE.sub("", shown)
    assert code == 0 and ESCAPE.search(shown) and ("█" in text) == (columns > 52) and "rank 2 on" in text and "…" not in text
    assert re.search(r"made\s+for\s+128\s+rows\s", text), text
    if columns <= 52:
        return
    heads = [int(line.split()[4]) for line in text.splitlines() if re.match(r"rank \d+ on \S+ +\d+ +█", line)]
    assert sum(heads) == random_model("tiny-bert").spec.heads, text


def test_what_is_chosen_for_a_supervised_run_is_kept(made):
    for chosen in (("--json",), ()):
        result = CliRunner().invoke(main.main, ["supervise", *chosen, str(made / "nowhere.txt"), "--", "run"])
        assert "nowhere.txt cannot be read" in str(result.exception) and screen.SCREEN.json == bool(chosen)


def test_an_error_on_a_terminal_breaks_no_word(made):
    path = str(made / ("a-name-that-is-rather-long" * 8))
    code, shown = on_a_terminal(["inspect", path])
    text = ESCAPE.sub("", shown)
    assert code == 2 and path in text and ESCAPE.search(shown) and text.lstrip("\r").startswith("error:")


def test_no_colour_where_none_is_wanted(made):
    code, shown = on_a_terminal(words(made, "inspect"), NO_COLOR="1")
    assert code == 0 and not re.search(r"\x1b\[[0-9;]*3\dm", shown)


COMPLETED = [("", "supervise"), ("pl", "plan"), ("run --strat", "--strategy"), ("run --strategy co", "coedge")]


@pytest.mark.parametrize("typed, offered", COMPLETED)
def test_the_shell_completes(typed, offered):
    asked = f"hepti_mpi {typed}"
    environment = {**os.environ, "_HEPTI_MPI_COMPLETE": "bash_complete", "COMP_WORDS": asked, "COMP_CWORD": str(len(asked.split(" ")) - 1),
                   "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    code = "import sys; sys.argv = ['hepti_mpi']; from hepti_mpi.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert f"plain,{offered}" in done.stdout.splitlines(), (done.stdout, done.stderr)


def test_what_is_to_be_copied_is_not_folded(monkeypatch, capfd):
    """An entry of boards.toml was broken within its quotes, which is no TOML."""
    monkeypatch.setattr(terminal, "path", lambda descriptor: "/nowhere")
    monkeypatch.setattr(terminal, "width", lambda descriptor: 40)
    line = 'float32_gflops = "measured: on this machine, 2 threads, products with rows from 96 to 384"'
    screen.SCREEN.copied(f"[boards.here]\n{line}\n")
    assert line in capfd.readouterr().out.splitlines()


def test_a_store_that_is_replaced_is_named(tmp_path):
    """The one in float32 took the place of one in 8 bits without a word."""
    words = ["slice", "random:tiny-bert", str(tmp_path / "a.h5")]
    first, second = (CliRunner().invoke(main.main, words) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert "is there already: it is replaced when the new one is whole" in second.output and "is there already" not in first.output
