"""Scripts of jobs/: what they say and what they start, with stand-ins for the environment and the program."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import on_a_terminal

from hepti_mpi.comm.launcher import mpirun_words

JOBS = Path(__file__).parent.parent / "jobs"
NOTED = """#!/bin/sh
printf '%s\\n' "${0##*/} $*" >>"$NOTES"
[ "$1" != -c ] || echo "$PWD/a place"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in which nothing needs to be installed, in a folder with a blank and an umlaut."""
    root = tmp_path / "my küche"
    made = {"jobs/quickstart.sh": (JOBS / "quickstart.sh").read_text(), "jobs/make-venv.sh": 'echo "environment $*" >>"$NOTES"\n',
            ".venv/bin/activate": "PATH=$PWD/.venv/bin:$PATH\n", ".venv/bin/python": NOTED, ".venv/bin/mpirun": NOTED}  # fmt: skip
    for name, text in made.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    return root


def started(root, *words, **more):
    """Return the exit code, what is said, and what was started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LC_")} | {"LC_ALL": "C.UTF-8"}
    environment |= {"NOTES": str(root / "notes")}
    done = subprocess.run(["bash", "jobs/quickstart.sh", *words], cwd=root, capture_output=True, text=True, env=environment, **more)
    return done.returncode, done.stdout + done.stderr, (root / "notes").read_text().splitlines() if (root / "notes").exists() else []


def test_three_commands_are_told_and_done(checkout):
    code, said, notes = started(checkout, "--input", "two words.txt")
    slice_, profile, run = (line.removeprefix("+ ") for line in said.splitlines())
    store = "weights/all-MiniLM-L6-v2.h5"
    assert code == 0 and notes[0] == "environment mpi jobs/minilm.txt"
    assert shlex.split(slice_) == ["python", "-m", "hepti_mpi", "slice", f"{checkout}/a place/model", store]
    assert profile == f"mpirun -hostfile hostfiles/localhost.txt python -m hepti_mpi profile --weights {store}"
    assert shlex.split(run)[6:] == ["run", "--weights", store, "--input", "two words.txt"]
    assert notes[-2:] == [profile, " ".join(shlex.split(run))]


@pytest.mark.parametrize("words", [["--text", "--serve", "--port", "80"], ["--port", "80", "--serve", "--text"]])
def test_its_own_options_stand_anywhere(checkout, words):
    code, said, notes = started(checkout, *words)
    assert code == 0 and notes[0] == "environment mpi,serve jobs/smollm2.txt"
    assert said.splitlines()[-1] == "+ " + notes[-1] == "+ python -m hepti_mpi serve --weights weights/SmolLM2-135M-Instruct.h5 --port 80"


def test_help_does_nothing_else(checkout):
    code, said, notes = started(checkout, "--help")
    assert code == 0 and not notes and "bash jobs/quickstart.sh --serve" in said and "set -" not in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("columns", [60, 80, 400])
def test_commands_end_lines_between_words_on_a_terminal(checkout, columns):
    """bash's own way of telling them, set -x, left it to the terminal, which ended lines within words."""
    more = {"NOTES": str(checkout / "notes"), "LC_ALL": "C.UTF-8"}
    code, said = on_a_terminal(["--input", "my.txt"], columns, checkout, ["bash", "jobs/quickstart.sh"], **more)
    lines = said.replace("\r", "").splitlines()
    long = [line for line in lines if len(line) > columns]
    assert code == 0 and all(len(shlex.split(line.rstrip("\\"))) == 1 for line in long)  # one long word
    told = "\n".join(lines).replace(" \\\n   ", "").splitlines()
    assert len(told) == 3 and [" ".join(shlex.split(line)[1:]) for line in told] == (checkout / "notes").read_text().splitlines()[2:]


def test_from_another_folder_it_says_where_it_goes(checkout):
    done = subprocess.run(["bash", str(checkout / "jobs/quickstart.sh")], cwd="/", capture_output=True, text=True,
                          env=os.environ | {"NOTES": str(checkout / "notes"), "LC_ALL": "C.UTF-8"})  # fmt: skip
    assert done.returncode == 0 and shlex.split(done.stderr.splitlines()[0]) == ["+", "cd", str(checkout.resolve())]


def test_what_fails_ends_it(checkout):
    (checkout / ".venv/bin/mpirun").write_text("#!/bin/sh\nexit 3\n")
    code, said, _ = started(checkout)
    assert code == 3 and len(said.splitlines()) == 2


# the other scripts


@pytest.mark.parametrize("script, extras", [("slurm.sbatch", "mpi"), ("serve.sbatch", "mpi,serve"), ("pbs.sh", "mpi")])
def test_a_job_without_its_environment_says_how_it_is_made(script, extras, tmp_path):
    """bash's own words were all that it said: .venv/bin/activate: No such file or directory."""
    place = {"SLURM_SUBMIT_DIR": str(tmp_path), "PBS_O_WORKDIR": str(tmp_path)}
    done = subprocess.run(["bash", str(JOBS / script)], env=os.environ | place, capture_output=True, text=True)
    told = f"error: there is no .venv in {tmp_path}; make it with: bash jobs/make-venv.sh {extras} jobs/minilm.txt\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["slurm.sbatch", "pbs.sh"])
@pytest.mark.parametrize("store", [None, "weights/mine.h5"])
def test_a_job_whose_store_is_missing_makes_no_other(checkout, script, store):
    """One that was named and not there became the example model under its name, whose answers nobody had asked for; without the example's
    package Python's own words were all that was said."""
    place = {"SLURM_SUBMIT_DIR": str(checkout), "PBS_O_WORKDIR": str(checkout), "NOTES": str(checkout / "notes")}
    place |= {"STORE": store} if store else {}
    if store is None:
        (checkout / ".venv/bin/python").write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    done = subprocess.run(["bash", str(JOBS / script)], env=os.environ | place, capture_output=True, text=True)
    name = store or "weights/all-MiniLM-L6-v2.h5"
    told = f"error: there is no store {name}; make it with: python -m hepti_mpi slice MODEL_FOLDER {name}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told) and not (checkout / "notes").exists()


@pytest.mark.parametrize("script", ["slurm.sbatch", "serve.sbatch", "pbs.sh"])
def test_a_job_in_a_folder_with_a_blank_names_its_mpirun_whole(checkout, script):
    """Only what stands before the blank was started."""
    for name, text in {"scontrol": "#!/bin/sh\necho node-1\n", "ssh": "#!/bin/sh\n"}.items():
        (checkout / ".venv/bin" / name).write_text(text)
        (checkout / ".venv/bin" / name).chmod(0o755)
    for name, text in {"hostfiles/nodes": "node-1\nnode-1\n", "weights/mine.h5": ""}.items():
        (checkout / name).parent.mkdir()
        (checkout / name).write_text(text)
    place = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-1", "PBS_O_WORKDIR": str(checkout),
             "PBS_JOBID": "7.server", "PBS_NODEFILE": "hostfiles/nodes", "STORE": "weights/mine.h5"}  # fmt: skip
    place |= {"NOTES": str(checkout / "notes")}
    done = subprocess.run(["bash", str(JOBS / script)], env=os.environ | place, capture_output=True, text=True)
    last = (checkout / "notes").read_text().splitlines()[-1]
    called = mpirun_words(last.partition("--mpirun ")[2].partition(" -- run")[0])
    assert done.returncode == 0 and called[0] == f"{checkout.resolve()}/.venv/bin/mpirun"
    assert called[1:5] == ["--map-by", "ppr:1:node", "--bind-to", "none"]


@pytest.mark.parametrize("words, said", [
    ([], "say what is to be installed beside the package: bash jobs/make-venv.sh mpi"), (["--help"], "say what is to be installed"),
    (["mpi", "jobs/nope.txt"], "there is no file jobs/nope.txt in "),
])  # fmt: skip
def test_an_environment_of_nothing_is_refused(words, said):
    done = subprocess.run(["bash", str(JOBS / "make-venv.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_an_interpreter_that_an_environment_has_not_is_refused(tmp_path):
    """The one that is there was taken without a word. What removes it is a command that may be typed, also in a folder with a blank."""
    checkout = tmp_path / "my boards"
    (checkout / "jobs").mkdir(parents=True)
    (checkout / "jobs" / "make-venv.sh").write_text((JOBS / "make-venv.sh").read_text())
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", checkout / ".venv"], check=True)
    command = ["bash", str(checkout / "jobs" / "make-venv.sh"), "mpi"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": "python3.99"}, capture_output=True, text=True)
    has = ".".join(map(str, sys.version_info[:3]))
    said, _, typed = done.stderr.partition("; remove it first: ")
    assert (done.returncode, said) == (1, f"error: PYTHON=python3.99 chooses for a new .venv, and the one here has Python {has}")
    assert shlex.split(typed) == ["rm", "-r", f"{checkout}/.venv"]


def test_settings_are_not_touched_where_they_are_right(tmp_path):
    """A checkout that cannot be written, with all that it needs, did not even start."""
    venv = tmp_path / "venv"
    for name in ("bin/python", "bin/mpirun", "bin/activate", "etc/prte-mca-params.conf"):
        (venv / name).parent.mkdir(parents=True, exist_ok=True)
        (venv / name).touch(mode=0o755)
    settings = venv / "etc/prte-mca-params.conf"
    settings.write_text("rmaps_default_mapping_policy = :oversubscribe\n")
    command = ["bash", str(JOBS / "openmpi-settings.sh"), str(venv)]
    subprocess.run(command, check=True)
    found = settings.read_text()
    assert "rmaps_default_mapping_policy = slot:oversubscribe\n" in found and "= :oversubscribe" not in found
    inode = settings.stat().st_ino
    subprocess.run(command, check=True)
    assert settings.read_text() == found and settings.stat().st_ino == inode


def test_settings_name_the_command_that_makes_what_is_missing(tmp_path):
    """Of a folder without Python they named that Python's pip."""
    venv = tmp_path / "my venv"

    def said() -> tuple[int, str]:
        done = subprocess.run(["bash", str(JOBS / "openmpi-settings.sh"), str(venv)], capture_output=True, text=True)
        return done.returncode, done.stderr

    assert said() == (1, f"error: {venv} is no Python environment; make one in the checkout with: bash jobs/make-venv.sh mpi\n")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    code, sentence = said()
    command = shlex.split(sentence.partition("install it with: ")[2])
    assert code == 1 and command[0] == f"{venv}/bin/python" and command[1:4] == ["-m", "pip", "install"]
