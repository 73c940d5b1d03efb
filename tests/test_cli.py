"""The commands that need no MPI, on tiny models; and what all commands have in common."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from clusters import cluster

from hepti_mpi.commands import main
from hepti_mpi.commands.helping import tell_misuse
from hepti_mpi.commands.options import BASELINES, LAYOUT_NAMES
from hepti_mpi.errors import CapacityError, HeptiError, ModelError, PlanError, ProfileError, StoreError
from hepti_mpi.planning.baselines import baseline
from hepti_mpi.program import placement as placements
from hepti_mpi.program.plan import check
from hepti_mpi.weights.places import no_file
from hepti_mpi.weights.slices import Part, whole_slices
from hepti_mpi.weights.store import Store

PLAN = ("plan", "--weights", "tiny-bert.h5", "--profile", "three.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two stores and profiles of 1 and 3 ranks."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("tiny-bert", "tiny-vit"):
        result = CliRunner().invoke(main.main, ["slice", f"random:{name}", str(folder / f"{name}.h5")])
        assert result.exit_code == 0, result.exception
    cluster((9, 7, 8)).save(folder / "three.json")
    cluster((9,)).save(folder / "one.json")
    for name in ("folder/config.json", "folder/model.safetensors", f"cache/{'ab' * 16}-rank01.h5", "strangers/ab/tiny.h5",
                 "project/weights/tiny.h5", "parts/rank00.h5", "parts/rank01.h5",
                 "hub/models--a--b/snapshots/0f/config.json", "empty/nothing",
                 "outer/model/config.json", "outer/model/a.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "several.txt").write_text("localhost slots=2\n")
    (folder / "links").mkdir()
    (folder / "links/dead.h5").symlink_to("/no/such.h5")
    return folder


@pytest.fixture
def run(made, monkeypatch):
    """Run a command in the folder; return its output, or raise what it raised."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cached"))  # what other tests have measured is not for these

    def command(*words):
        result = CliRunner().invoke(main.main, [str(word) for word in words], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    return command


def sentence(error):
    """The words of an error for the user, which are one line in lower case without a full stop."""
    text = error.value.format_message() if isinstance(error.value, click.ClickException) else str(error.value)
    assert isinstance(error.value, (HeptiError, click.ClickException))
    assert text and "\n" not in text and not text.endswith(".") and "Error" not in text
    return text


# all commands


SHOWN = {name for name, command in main.main.commands.items() if not command.hidden}


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_help_has_an_example(name):
    command = main.main.commands[name]
    text = CliRunner().invoke(main.main, [name, "--help"]).output
    assert "Example" in text and f"python -m hepti_mpi {name}" in text
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{name}: {parameter.name} has no help"
    command._help_option = None  # of a test that asked the command alone, which is not called -h there
    assert CliRunner().invoke(main.main, [name, "-h"]).output == text


@pytest.mark.parametrize("name", sorted(SHOWN))
@pytest.mark.parametrize("width", [60, 80, 110])
def test_help_breaks_lines_between_words(name, width):
    """Options, what they may be, and examples fit into the width of a terminal, which else cuts them anywhere."""
    text = CliRunner().invoke(main.main, [name, "--help"], terminal_width=width).output
    assert max(map(len, text.splitlines())) <= width
    words = set(text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    for option in main.main.commands[name].params:
        assert words >= set(getattr(option.type, "choices", ())), option.name
    wide = CliRunner().invoke(main.main, [name, "--help"], terminal_width=500).output
    options = wide[wide.index("Options:") :].replace("[", " ").replace("]", " ").replace(",", " ").split()
    assert words >= {word for word in options if "-" in word[1:]}, "a name with a hyphen is one word"


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_examples_can_be_copied_from_a_narrow_terminal(name):
    """A line that goes on ends with a backslash: the shell reads what a wide terminal shows."""
    narrow, wide = (CliRunner().invoke(main.main, [name, "--help"], terminal_width=width).output for width in (50, 500))
    examples, copied = ({" ".join(line.split()) for line in text.splitlines()} for text in (wide, narrow.replace("\\\n", "")))
    examples = {line for line in examples if re.match("(mpirun|python) ", line)}
    assert examples and examples <= copied


@pytest.mark.parametrize("width", [60, 80])
def test_the_list_of_commands_says_all_of_what_each_is_for(width):
    text = CliRunner().invoke(main.main, ["--help"], terminal_width=width).output
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert all(f"{name} {main.main.commands[name].get_short_help_str(10_000)}" in words for name in SHOWN)


def test_help_and_version():
    result = CliRunner().invoke(main.main, ["--help"])
    assert result.exit_code == 0 and all(name in result.output for name in SHOWN) and "Example" in result.output
    assert SHOWN == {"slice", "inspect", "plan", "profile", "run", "chat", "bench", "report", "doctor", "push", "supervise", "serve"}
    assert "hepti_mpi" in CliRunner().invoke(main.main, ["--version"]).output


@pytest.mark.parametrize("name", ["run", "bench", "chat"])
def test_help_needs_neither_mpi_nor_onnxruntime(name):
    code = f"import sys\nfrom hepti_mpi.commands import main\ntry:\n    main.main(['{name}', '--help'])\nexcept SystemExit:\n    pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('mpi4py', 'onnxruntime', 'onnx', 'h5py', 'numpy', 'scipy', 'matplotlib')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300, env=os.environ, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_gone_is_no_place_to_start_in(tmp_path):
    """doctor said FileNotFoundError, others that there is no store."""
    place = tmp_path / "gone"
    place.mkdir()
    line = f'rmdir "$PWD"; exec {sys.executable} -m hepti_mpi doctor'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=300, cwd=place, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: the folder that this was started in cannot be used (")


@pytest.mark.parametrize("without", [["-S", "-m", "hepti_mpi"], [
    "-c", "import sys\nsys.modules['h5py'] = None\nfrom hepti_mpi.__main__ import main\nmain()"]])  # fmt: skip
def test_an_interpreter_that_lacks_what_is_needed_is_told_of_another(without, tmp_path):
    """In a new terminal, without .venv, the system's Python found the checkout and ended with a traceback."""
    (tmp_path / "x.h5").touch()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, *without, "inspect", "x.h5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert re.fullmatch(r"error: this Python, .*, has no (click|h5py), which hepti_mpi needs; .*\.venv.*\n", done.stderr)


def test_inspect_takes_the_only_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main.main, ["inspect"])
    assert f"there is no store in weights/ of {os.getcwd()}; make one with" in str(result.exception)
    assert CliRunner().invoke(main.main, ["slice", "random:tiny-bert", "weights/only.h5"]).exit_code == 0
    assert CliRunner().invoke(main.main, ["inspect"]).output.startswith("weights/only.h5: bert only")
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir("jobs")
    above = CliRunner().invoke(main.main, ["inspect"])
    assert str(above.exception).endswith(f"/jobs; there is one in that of {tmp_path}: go there with: cd {tmp_path}")


@pytest.mark.parametrize("words", [["fly"], ["run", "--wings"], ["slice"], ["plan", "--boards", "pi4", "--profile", "x"],
                                   ["plan", "--profile", "x", "--rows", "0"],
                                   ["plan", "--profile", "x", "--layout", "a/b"],
                                   ["plan", "--profile", "x", "--strategy", "best"], ["run", "--repeat", "0"]])  # fmt: skip
def test_usage_errors(words):
    result = CliRunner().invoke(main.main, words)
    assert result.exit_code == 2 and "Error" in result.output and "Traceback" not in result.output


ANY = ("plan", "--profile", "x")  # its usage errors come before its files are looked for


@pytest.mark.parametrize("words, expected", [
    (["run", "--emulate", "0.5,2"], "board '0.5' is 0.5 times slower, expected 1 to 1000"),
    (["bench", "--emulate", "fast"], "no board 'fast' is described; boards: pi3, pi4"),
    (["profile", "--emulate", "1,,2"], "no board '' is described"),
    (["run", "--emulate", "pi4*0.5,2"], "0.5 times slower"),
    (["run", "--tolerance", "2"], "not in the range 0<=x<=1"),
    (["run", "--tolerance", "-0.1"], "not in the range 0<=x<=1"),
    ([*ANY, "--tolerance", "nan"], "nan is no number"),
    (["run", "--temperature", "nan"], "nan is no number"),
    (["plan", "--mbit", "nan"], "nan is no number"),
    ([*ANY, "--tolerance", "much"], "not a valid float"),
    (["run", "--threads", "0"], "not in the range"),
    (["run", "--layout", "local/columns"], "is not one of"),
    (["run", "--strategy", "alpa"], "is not one of"),
    (["run", "--boost"], "--boost is for the other systems' strategies: megatron, voltage"),
    ([*ANY, "--boost", "--strategy", "auto"], "--boost is for the other systems' strategies"),
    ([*ANY, "--boost", "--strategy", "tensor"], "--boost is for the other systems' strategies"),
    ([*ANY, "--boost", "--layout", "rows/rows"], "--boost is for the other systems' strategies"),
    ([*ANY, "--layout", "rows/rows", "--strategy", "tensor"], "use just one of --layout and --strategy"),
    (["run", "--layout", "rows/rows", "--strategy", "megatron"], "use just one of --layout and --strategy"),
    (["run", "--strategy", "coedge", "--shares", "1,2"], "strategy coedge divides by its own rule: leave out --shares"),
    (["run", "--strategy", "ram", "--tolerance", "0.1"], "strategy ram sends float32: leave out --tolerance"),
    ([*ANY, "--strategy", "single", "--weights-mode", "mapped"], "strategy single holds its weights in memory"),
    ([*ANY, "--scale", "s.png", "--shares", "1,2"], "--shares are of all ranks"),
    ([*ANY, "--scale", "s.docx"], "--scale s.docx does not end in .png"),
    (["run", "--plan", "p.json", "--boost"], "--plan says who does what; it cannot be used with --boost"),
    (["run", "--plan", "p.json", "--tolerance", "0.1"], "it cannot be used with --tolerance"),
    (["run", "--plan", "p.json", "--strategy", "galaxy"], "it cannot be used with --strategy"),
    (["run", "--plan", "p.json", "--memory-limit", "1M"], "it cannot be used with --memory-limit"),
    (["run", "--plan", "p.json", "--fresh"], "it cannot be used with --fresh"),
    (["bench", "--methods", "hepti,fly"], "there is no method 'fly'; known are hepti, hepti-float16, hepti-int8, tensor"),
    (["bench", "--cache-format", "float16"], "--cache-format is for texts: give --phase decode"),
    (["bench", "--tokens", "5"], "--tokens is for texts: give --phase decode"),
    (["run", "--cache-format", "int8"], "is not one of"),
    (["plan", "--weights", "random:bert-base", "--boards", "pi4", "--cache-format", "float16"], "is for models that generate text"),
    (["plan", "--profile", "x.json", "--mbit", "100"], "--mbit and --latency-us are of the links between --boards"),
    (["plan", "--latency-us", "9"], "--mbit and --latency-us are of the links between --boards"),
    (["bench", "--methods", "hepti-boost"], "there is no method 'hepti-boost'"),
    (["bench", "--methods", "megatron-boost-boost"], "there is no method"),
    (["bench", "--methods", ""], "there is no method ''"),
    (["run", "--field", ""], "--field': it is empty: name one, or leave the option out"), (["run", "--pair", " "], "it is empty"),
    (["bench", "--cluster", ""], "it is empty"),
    (["bench", "--methods", "hepti,,tensor"], "there is no method ''"),
    (["bench", "--rows", "0"], "is no number of rows from 1 to"),
    (["bench", "--repeat", "0"], "not in the range"),
    (["bench", "--memory-limit", "much"], "not a size"),
    (["--weights", "x.h5", "run"], "--weights belongs behind the name of its command: main run --weights ..."),
    (["-q", "run"], "-q belongs behind the name of its command: main run -q ..."),
    (["anser"], "no such command 'anser'; did you mean serve?"), (["generate"], "'generate'; main --help lists the commands"),
    (["--wings", "run"], "No such option '--wings'"),
    (["report"], "Missing argument 'RECORDS'"),
    (["report", "x.jsonl"], "Missing option '--output'"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_mpi_starts(words, expected):
    """One sentence after the usage, exit code 2."""
    result = CliRunner().invoke(main.main, words)
    told = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 2 and len(told) == 1 and expected in told[0], result.output
    assert "Traceback" not in result.output
    assert result.output.index("Error: ") > result.output.index("Usage: ")


# slice and inspect


@pytest.mark.parametrize("words, expected", [
    (["run", "hosts.txt"], "name what is to be answered with --input (one file, or a folder of pictures), a store with --weights, "
                           "hosts with mpirun -hostfile FILE python -m hepti_mpi run"),
    (["run", "--input", "a.png", "b.png"], "(b.png); name what is to be answered with --input (one file, or a folder of pictures), "),
    (["plan", "x.h5"], "(x.h5); name a store with --weights\n"),
    (["inspect", "a.h5", "b.h5"], "unexpected extra argument (b.h5)\n"),
])  # fmt: skip
def test_a_bare_word_too_many_is_told_how_such_things_are_named(words, expected, capsys):
    with pytest.raises(click.UsageError) as error:
        main.main(words, standalone_mode=False)
    tell_misuse(error.value)
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words, expected", [
    (["inspect", "--weights", "a.h5"], "no option --weights here; it is named without one: python -m hepti_mpi inspect [STORE]\n"),
    (["push", "--weights", "a.h5"], "python -m hepti_mpi push STORE HOSTFILE\n"),
    (["slice", "folder", "--output", "a.h5"], "no option --output here; it is named without one: python -m hepti_mpi slice SOURCE STORE\n"),
    (["doctor", "--hostfile", "a.txt"], "it is named without one: python -m hepti_mpi doctor [HOSTFILE]\n"),
    (["serve", "--hostfile", "a.txt"], "it is named without one: python -m hepti_mpi serve [HOSTFILE]\n"),
    (["report", "--input", "a.jsonl"], "python -m hepti_mpi report RECORDS\n"),
    (["run", "--hostfile", "a.txt"], "hosts are named to mpirun: mpirun -hostfile FILE python -m hepti_mpi run\n"),
    (["run", "-hostfile", "a.txt"], "no option -hostfile here; hosts are named to mpirun: mpirun -hostfile FILE python -m hepti_mpi run\n"),
    (["run", "-input=a.txt"], "no option -input here; it has two dashes: --input\n"), (["run", "-z"], "No such option '-z'"),
    (["run", "--weight", "a.h5"], "No such option '--weight'"),
])  # fmt: skip
def test_what_has_an_option_in_other_commands_is_told_its_place(words, expected, capsys):
    with pytest.raises(click.UsageError) as error:
        main.main(words, standalone_mode=False)
    tell_misuse(error.value)
    assert expected in capsys.readouterr().err


def test_slice_writes_a_store(run, made):
    said = run("slice", "random:tiny-bert", "new/again.h5")
    assert said.startswith("new/again.h5: bert again, ")
    with Store(made / "new" / "again.h5") as store:
        store.verify(whole_slices(store.spec))


@pytest.mark.parametrize("words, kind, expected", [
    (["slice", "random:huge", "x.h5"], ModelError, "no random model 'huge'"),
    (["slice", "nowhere", "x.h5"], ModelError, "nowhere not found"),
    (["slice", "empty", "x.h5"], ModelError, "has no config.json"),
    (["slice", "outer", "x.h5"], ModelError,
     r"outer has no config.json; a folder in it has: python -m hepti_mpi slice outer/model weights/model.h5$"),
    (["slice", "random:tiny-bert", "three.json/x.h5"], StoreError, "three.json is no folder"),
    (["slice", "random:tiny-bert", "x.h5", "--plan", "none.json", "--ranks", "parts"], PlanError,
     "none.json cannot be read"),
    (["slice", "random:tiny-bert", "x.h5", "--ranks", "parts"], click.UsageError, "go together"),
    (["inspect", "."], StoreError, r"\. is a folder of 2 stores; name one: tiny-bert.h5, tiny-vit.h5"),
    (["inspect", "folder"], StoreError,
     "folder is a model folder, not a store; make a store of it with: python -m hepti_mpi slice folder weights/folder.h5"),
    (["plan", "--weights", "folder", "--profile", "three.json"], StoreError, "folder is a model folder, not a store"),
    (["push", ".", "several.txt"], StoreError, r"\. is a folder of 2 stores; name one: tiny-bert.h5, tiny-vit.h5"),
    (["push", "folder", "several.txt"], StoreError, "folder is a model folder, not a store; make a store of it with: "),
    (["push", "parts", "several.txt"], HeptiError, "push copies one file to a host, and several.txt gives localhost several ranks"),
    (["inspect", "cache"], StoreError, "cache is a --weights-cache: it has parts of stores, not a whole one; name a store, made with: "),
    (["inspect", "strangers"], StoreError, "strangers is a folder without a store; make one with: "),
    (["inspect", "project"], StoreError,
     "project is a folder without a store, but project/weights has 1 store; name one: project/weights/tiny.h5"),
    (["inspect", "parts"], StoreError,
     "parts holds the files of 2 ranks, not a whole store; name one of them, such as parts/rank00.h5"),
    (["inspect", "empty"], StoreError,
     "empty is a folder without a store; make one with: python -m hepti_mpi slice MODEL_FOLDER weights/model.h5"),
    (["inspect", "hub"], StoreError,
     "hub is a folder of the Hugging Face cache, not a store; .* slice hub/models--a--b/snapshots/0f weights/b.h5"),
    (["inspect", "sentence-transformers/all-MiniLM-L6-v2"], StoreError,
     "is no file here; if it is a model's name on the Hugging Face hub.*: hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir "
     "models/all-MiniLM-L6-v2, then: python -m hepti_mpi slice models/all-MiniLM-L6-v2 weights/all-MiniLM-L6-v2.h5"),
    (["plan", "--weights", "google/vit-base-patch16-224", "--profile", "three.json"], StoreError,
     "hf download google/vit-base-patch16-224"),
    (["slice", "google/vit-base-patch16-224", "x.h5"], ModelError, "hf download google/vit-base-patch16-224"),
    (["slice", "https://huggingface.co/google/vit-base-patch16-224/tree/main", "x.h5"], ModelError,
     "google/vit-base-patch16-224 is no file here; .* hf download google/vit-base-patch16-224 --local-dir"),
    (["slice", "hub", "x.h5"], ModelError,
     "the model is in a snapshot: python -m hepti_mpi slice hub/models--a--b/snapshots/0f"),
    (["inspect", "folder/model.safetensors"], StoreError,
     "slice the model folder that it is in: python -m hepti_mpi slice folder"),
    (["inspect", "random:tiny-bert"], StoreError, "slice random:tiny-bert weights/tiny-bert.h5"),
    (["plan", "--weights", "tiny-bert.h5"], ProfileError, "there is no profile in hostfiles/ of .*; measure with: mpirun"),
    (["inspect", "none.h5"], StoreError, "none.h5 not found; make it with: python -m hepti_mpi slice SOURCE none.h5"),
    (["inspect", "none"], StoreError, "none not found; make it with: python -m hepti_mpi slice SOURCE none.h5"),
    (["inspect", "/dev/null"], StoreError, "/dev/null is no file; name a store, made with: python -m hepti_mpi slice"),
    (["report", "records.jsonl", "--output", "/dev/null"], HeptiError, "--output /dev/null is a file; name a folder"),
    (["inspect", "three.json"], StoreError, "three.json is a profile, not a store; plan with it: python"),
    (["plan", "--weights", "none.h5", "--profile", "three.json"], StoreError, "none.h5 not found"),
    (["plan", "--weights", "tiny-bert.h5", "--profile", "none.json"], ProfileError, "none.json cannot be read"),
    (["plan", "--weights", "tiny-bert.h5", "--profile", "tiny-bert.h5"], ProfileError, "tiny-bert.h5 is not"),
    ([*PLAN, "--shares", "1,2"], PlanError, "2 entries, the job has 3 ranks"),
    ([*PLAN, "--memory-limit", "1M,1M"], PlanError, "2 entries, the job has 3 ranks"),
    ([*PLAN, "--memory-limit", "1k"], CapacityError, r"rank \d on pi\d lacks \d+ bytes"),
    ([*PLAN, "--strategy", "voltage", "--memory-limit", "1M,1M"], PlanError, "2 entries, the job has 3 ranks"),
    ([*PLAN, "--strategy", "voltage", "--memory-limit", "1k"], CapacityError,
     r"voltage does not fit: rank \d on pi\d lacks \d+ bytes"),
    (["report", "none.jsonl", "--output", "pictures"], HeptiError, "none.jsonl"),
    (["report", "three.json", "--output", "pictures"], HeptiError,
     "three.json is a profile, not what bench --output recorded; plan with it: python"),
    ([*PLAN, "--shares", "a,b,c"], click.UsageError, "such as 5,1,1,1"),
    ([*PLAN, "--shares", "0,0,0"], click.UsageError, "at least one above 0"),
    ([*PLAN, "--shares", "nan,1,1"], click.UsageError, "such as 5,1,1,1"),
    ([*PLAN, "--memory-limit", "much"], click.UsageError, "not a size"),
    ([*PLAN, "--memory-limit", "-5M"], click.UsageError, "not a size"),
    ([*PLAN, "--memory-limit", ""], click.UsageError, "not a size"),
    ([*PLAN, "--output", "gone/plan.json"], PlanError, "--output gone/plan.json: folder gone does not exist"),
    ([*PLAN, "--output", "folder"], PlanError, "--output folder is a folder"),
    ([*PLAN, "--output", "folder/model.safetensors"], PlanError, "was not written by this program: name another file"),
    ([*PLAN, "--scale", "gone/s.png"], HeptiError, "--scale gone/s.png: folder gone does not exist"),
    (["slice", "tiny-bert.h5", "random:tiny-bert"], StoreError, "the source comes first: python -m hepti_mpi slice SOURCE STORE"),
    (["slice", "folder/config.json", "x.h5"], ModelError, "is a file of a model; name the folder that it is in: .* slice folder "),
    (["slice", "bert-base-uncased", "x.h5"], ModelError, "not found; expected a folder with .*: hf download NAME --local-dir models/NAME"),
    (["push", "tiny-bert.h5", "tiny-bert.h5"], HeptiError, "hostfile tiny-bert.h5: it is a weight store; name the file with the hosts"),
    (["supervise", "tiny-bert.h5", "--", "run"], HeptiError, "hostfile tiny-bert.h5: it is a weight store"),
    (["slice", "random:tiny-bert", "empty"], StoreError, "empty is a folder; name a file"),
    (["slice", "x.h5", "folder"], StoreError, "folder is a folder of a model, no file; the source comes first: .* slice folder STORE"),
    (["slice", "random:tiny-bert", "x.h5.txt"], StoreError, "x.h5.txt does not end in .h5"),
    (["slice", "random:tiny-bert", "folder/model.safetensors"], StoreError, "is there and is no store: name another file"),
    (["slice", "random:tiny-bert", "x.h5", "--plan", "three.json", "--ranks", "three.json"], PlanError,
     "three.json is not a plan of hepti_mpi but a profile; make it"),
    (["doctor", "--write", "three.json/x"], HeptiError, "--write three.json/x/hosts.txt: three.json is no folder"),
    (["inspect", "links/dead.h5"], StoreError, "links/dead.h5 cannot be read: it is a link to /no/such.h5, where nothing is"),
    (["inspect", "links/dead.h5/m.h5"], StoreError, "links/dead.h5/m.h5 cannot be read: links/dead.h5 is a link to /no/such.h5"),
    (["slice", "links/dead.h5", "x.h5"], ModelError, "links/dead.h5 cannot be read: it is a link to /no/such.h5"),
    (["plan", "--weights", "tiny-bert.h5", "--profile", "links/dead.h5"], ProfileError, "it is a link to /no/such.h5, where nothing is"),
    (["report", "links/dead.h5", "--output", "pictures"], HeptiError, "it is a link to /no/such.h5, where nothing is"),
    (["doctor", "links/dead.h5"], HeptiError, "hostfile links/dead.h5 cannot be read: it is a link to /no/such.h5, where nothing is"),
    (["push", "tiny-bert.h5", "links/dead.h5"], HeptiError, "hostfile links/dead.h5 cannot be read: it is a link to /no/such.h5"),
    (["serve", "--weights", "links/dead.h5"], StoreError, "it is a link to /no/such.h5, where nothing is"),
])  # fmt: skip
def test_errors_are_sentences(run, words, kind, expected):
    with pytest.raises(kind, match=expected) as error:
        run(*words)
    sentence(error)


def test_a_failed_slice_leaves_nothing(run, made):
    before = sorted(p.name for p in made.iterdir())
    with pytest.raises(ModelError):
        run("slice", "random:huge", "x.h5")
    assert sorted(p.name for p in made.iterdir()) == before


@pytest.mark.parametrize("name, words", [
    ("tiny-bert", ["bert tiny-bert",
     "3 layers, hidden 56, 7 heads of 8, ffn 101", "3 layers: layer norms after", "files: config.json, tokenizer.json"]),
    ("tiny-vit", ["vit tiny-vit, head image-classes, 5 labels", "3 layers: layer norms before", "at most 26 rows"]),
])  # fmt: skip
def test_inspect(run, name, words):
    said = run("inspect", f"{name}.h5")
    assert all(word in said for word in words), said
    rows = {line.split("  ")[0]: line.split() for line in said.splitlines() if line.startswith(("tensor", "hybrid", "sequence"))}
    assert len(rows) == 4
    assert len(set(rows["sequence"][-10:][::2])) == 1, "every rank of sequence holds all layers"
    assert float(rows["tensor"][-2]) < float(rows["sequence"][-2])


# plan


def test_plan_finds_the_only_profile_and_says_what_it_is_of(run, made):
    (made / "hostfiles").mkdir()
    only = made / "hostfiles" / "boards.profile.json"
    try:
        cluster((9, 7, 8)).save(only)
        assert "planning for 3 ranks on pi0, pi1, pi2, threads each 4, as measured in hostfiles/boards.profile.json" in run(*PLAN[:3])
        emulated = replace(cluster((9, 7)), versions={"emulation": "pi4,pi5"})
        emulated.save(only)
        said = run(*PLAN[:3])
        assert "planning for 2 ranks on pi0, pi1, threads each 4 as emulated boards (pi4,pi5)" in said
        assert "which was measured last; choose with --entry: 1: 3 ranks on pi0, pi1, pi2, threads each 4; 2: 2 ranks" in said
        assert "planned 3 ranks" in run(*PLAN[:3], "--entry", 1) and "choose with" not in run(*PLAN[:3], "--entry", 1)
        with pytest.raises(ProfileError, match="has 2 entries for this model, not 3: 1: 3 ranks"):
            run(*PLAN[:3], "--entry", 3)
        cluster((9,)).save(made / "hostfiles" / "other.profile.json")
        with pytest.raises(ProfileError, match="hostfiles/ has 2 profiles; name one with --profile: hostfiles/boards.profile.json, "):
            run(*PLAN[:3])
    finally:
        shutil.rmtree(made / "hostfiles")


def test_plan_prints_and_writes(run, made):
    said = run("plan", "--weights", "tiny-vit.h5", "--profile", "three.json", "--rows", 26, "--output", "plan.json")
    plan = placements.load(made / "plan.json").together
    with Store(made / "tiny-vit.h5") as store:
        check(plan, store.spec, store.source_hash, 3)
    assert plan.planned_rows == 26 and plan.hash in said and "chosen" in said and "plan written to plan.json" in said
    assert "planned 3 ranks" in said


@pytest.mark.parametrize("words, expected", [
    (["--strategy", "tensor"], {"tensor"}), (["--layout", "heads/rows"], {"hybrid"}),
    (["--strategy", "sequence", "--shares", "5,1,0"], {"sequence"}),
    (["--shares", "0,1,0"], {"single"}), (["--strategy", "tensor", "--memory-limit", "2M,1.5MiB,900k"], {"tensor"}),
    (["--weights-mode", "mapped"], {"tensor", "hybrid", "sequence", "mix", "single"}),
])  # fmt: skip
def test_plan_options(run, made, words, expected):
    run(*PLAN, "--rows", 9, "--output", "plan.json", *words)
    plan = placements.load(made / "plan.json").together
    assert plan.strategy in expected
    assert plan.weights_mode == (("mapped" if "mapped" in words else "packed"),) * 3
    if "5,1,0" in words:
        assert plan.rows == (8, 1, 0) or plan.rows == (7, 2, 0)


@pytest.mark.parametrize("boost", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_plan_divides_as_others_do(run, made, name, boost):
    said = run(*PLAN, "--rows", 26, "--strategy", name, "--output", "other.json", *(["--boost"] if boost else []))
    plan = placements.load(made / "other.json").together
    with Store(made / "tiny-bert.h5") as store:
        check(plan, store.spec, store.source_hash, 3)
        published = baseline(name, store.spec, store.source_hash, cluster((9, 7, 8)), 26)
    for kept in ("layers", "heads", "columns", "rows"):
        assert getattr(plan, kept) == getattr(published, kept)
    assert plan.collectives == ("own" if boost and name != "single" else "mpi") and plan.wire == "float32"
    assert plan.hash in said and "chosen" in said and ("0 B " in said) is (name == "single")  # which sends nothing


def test_plan_with_a_tolerance(run, made):
    """Shorter types are allowed then; which it is is the planner's choice, and told."""
    data = cluster((9, 7, 8), mbit=5).to_json()
    (made / "slow.json").write_text(json.dumps(data))
    words = ("plan", "--weights", "tiny-bert.h5", "--profile", "slow.json", "--rows", 97, "--layout", "rows/rows", "--output", "wire.json")
    assert "float16" not in run(*words) and placements.load(made / "wire.json").together.wire == "float32"
    said = run(*words, "--tolerance", "0.01")
    assert "int8 wire" in said and placements.load(made / "wire.json").together.wire == "int8"
    assert "int8 wire" in run(*words[:7], "--strategy", "sequence", "--tolerance", "0.01")


def test_plan_of_teams(run, made):
    said = run(*PLAN, "--rows", 26, "--objective", "throughput", "--output", "teams.json")
    assert said.count("alone, 4 batches at once") == 3 and "rows a second" in said
    assert len(placements.load(made / "teams.json").teams) == 3 * 4  # each of a rank's threads has batches of its own
    said = run(*PLAN, "--rows", 26, "--layout", "pipeline", "--output", "teams.json")
    assert "stages of 1 + 1 + 1 layers" in said and len(placements.load(made / "teams.json").stages) == 3


def test_plan_of_texts(run):
    words = ("plan", "--weights", "random:smollm2-135m", "--boards", "pi4,pi5")
    said = run(*words, "--tokens", 8)
    assert "ms of a token" in said and "stages of" in said and "8 tokens: " in said
    token, first = (float(found) for found in re.search(r"bound of a token: ([\d.]+) ms.* of the first: ([\d.]+) ms", said, re.S).groups())
    assert 0 < token < first
    said = run(*words)  # what a model that writes does is not a request through its layers
    assert "ms of a token" in said and "128 rows and 128 tokens: " in said and "rows/columns" not in said
    said = run(*words, "--layout", "pipeline")
    assert ", words" in said and "a token passes through all stages" in said


@pytest.mark.parametrize("layout", [name for name in LAYOUT_NAMES if name != "pipeline"])
def test_plan_of_every_layout(run, made, layout):
    run(*PLAN, "--rows", 26, "--layout", layout, "--output", "layout.json")
    plan = placements.load(made / "layout.json").together
    assert {"/".join(pair) for pair in plan.layers} == {layout}
    with Store(made / "tiny-bert.h5") as store:
        check(plan, store.spec, store.source_hash, 3)


def test_where_more_ranks_stop_helping(run, made):
    said = run(*PLAN, "--rows", 26, "--scale", "scale.png", "--memory-limit", "8M,9M,10M")
    told = [line.split(":")[0] for line in said.splitlines() if line.startswith("the first ")]
    assert told == ["the first 1 rank", "the first 2 ranks", "the first 3 ranks"]
    assert (made / "scale.png").read_bytes().startswith(b"\x89PNG") and "picture written to scale.png" in said


def test_the_only_store_is_found(run, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = made / "one.json"
    with pytest.raises(StoreError, match=r"there is no store in weights/ of .*; make one with: python -m hepti_mpi slice") as error:
        run("plan", "--profile", profile)
    sentence(error)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.h5").write_bytes((made / "tiny-bert.h5").read_bytes())
    assert "single" in run("plan", "--profile", profile)
    (tmp_path / "weights" / "b.h5").write_bytes(b"")
    with pytest.raises(StoreError, match="weights/ has 2 stores; name one with --weights: weights/a.h5, weights/b.h5"):
        run("plan", "--profile", profile)


def test_a_profile_of_another_model_is_refused(run, made):
    (data,) = json.loads((made / "three.json").read_text())["profiles"]
    (made / "other.json").write_text(json.dumps(data | {"shape": [768, 3072]}))
    with pytest.raises(ProfileError, match="measured at .*768.*3072.*, the model has .*56.*101") as error:
        run("plan", "--weights", "tiny-bert.h5", "--profile", "other.json")
    sentence(error)


def test_rank_files_of_a_plan(run, made):
    run(
        "plan",
        "--weights",
        "tiny-bert.h5",
        "--profile",
        "three.json",
        "--strategy",
        "tensor",
        "--shares",
        "5,1,1",
        "--output",
        "tensor.json",
    )
    said = run("slice", "random:tiny-bert", "cut.h5", "--plan", "tensor.json", "--ranks", "ranks")
    plan = placements.load(made / "tensor.json").together
    for rank in range(3):
        assert f"ranks/rank{rank:02d}.h5" in said
        with Store(made / "ranks" / f"rank{rank:02d}.h5") as store:
            assert store.verify(Part(store.spec, plan, rank).slices) > 0
    said = run("inspect", "ranks/rank01.h5")
    assert "a rank's part" in said


def test_a_plan_for_another_model_is_refused(run, made):
    run("plan", "--weights", "tiny-vit.h5", "--profile", "three.json", "--output", "vit.json")
    with pytest.raises(PlanError, match="the plan is for model tiny-vit") as error:
        run("slice", "random:tiny-bert", "cut.h5", "--plan", "vit.json", "--ranks", "parts-of-vit")
    sentence(error)
    assert not (made / "parts-of-vit").exists()
    run("plan", "--weights", "random:minilm", "--boards", "pi4,pi4,pi4", "--output", "minilm.json")  # whose layers are more
    with pytest.raises(PlanError, match="the plan is for model minilm"):
        run("slice", "random:tiny-bert", "cut.h5", "--plan", "minilm.json", "--ranks", "parts-of-minilm")


def test_a_store_that_another_rank_has_is_copied(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert no_file(Path("none.h5")) == (
        "none.h5 not found; copy it here with: python -m hepti_mpi push none.h5 HOSTFILE, or run with --weights-cache")
