"""What a start imports: the command that is asked for and, on each rank, what that rank uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_bad_input import MPIRUN, SECONDS, launch_environment

from hepti_mpi.commands import main

COMMANDS = sorted(main.PLACES)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_no_other(name):
    code = f"import sys\nfrom hepti_mpi.commands import main\ntry:\n    main.main(['{name}', '--help'])\nexcept SystemExit:\n    pass\n"
    code += "print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert f"hepti_mpi.commands.{name}" in done.stderr.split()
    assert not {f"hepti_mpi.commands.{other}" for other in COMMANDS if other != name} & set(done.stderr.split())


def test_a_rank_that_rests_does_not_import_what_computes(tmp_path):
    """Three ranks of one host, whose plan lets the first compute with all cores: the others neither plan nor read texts, look at their
    speed or make a session. Nobody imports what measures, as it was measured before, what makes teams or what writes text and stores."""
    used = ["onnx", "onnxruntime", "tokenizers", "hepti_mpi.planning.methods"]
    unused = ["scipy", "matplotlib", "tomllib", "hepti_mpi.engine.timing", "hepti_mpi.tuning.teaming"]
    unused += ["hepti_mpi.tuning.settle", "hepti_mpi.models.tasks.sampling", "hepti_mpi.weights.calibration", "hepti_mpi.weights.writing"]
    store, root = tmp_path / "tiny.h5", Path(__file__).parent.parent
    assert CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(store)]).exit_code == 0
    (tmp_path / "told.py").write_text("""
import atexit, os, sys
from pathlib import Path
from hepti_mpi import __main__ as program
def tell():
    found = [name for name in os.environ["LOOKED_FOR"].split() if name in sys.modules]
    Path("imported." + os.environ["OMPI_COMM_WORLD_RANK"]).write_text(" ".join(found))
atexit.register(tell)
sys.argv[0] = "hepti_mpi"
program.main()
""")
    environment = launch_environment() | {"PYTHONPATH": str(root), "LOOKED_FOR": " ".join(used + unused)}
    command = [str(MPIRUN), "-n", "3", sys.executable, "told.py", "run", "--weights", str(store), "--strategy", "single", "--json"]
    for fresh in (["--fresh"], [], [], []):  # beside other work it may be measured again
        done = subprocess.run([*command, *fresh], capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        if "measuring" not in done.stderr:
            break
    told = [(tmp_path / f"imported.{rank}").read_text().split() for rank in range(3)]
    assert told == [used, [], []]


def test_nobody_is_told_what_is_run():
    """Wheels of ONNX Runtime from 1.32 on tell an address on the internet unless they are told not to."""
    code = "import onnxruntime\ntold = []\nonnxruntime.disable_telemetry_events = lambda: told.append(True)\n"
    code += "import hepti_mpi.engine.sessions\nassert told"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


def test_nothing_is_noted_in_the_home_of_who_runs_it(tmp_path):
    """The same wheels noted there who that is before they could be told not to, and complained of a home that cannot be written."""
    store = tmp_path / "tiny.h5"
    assert CliRunner().invoke(main.main, ["slice", "random:tiny-bert", str(store)]).exit_code == 0
    for folder in ("home", "hostfiles"):  # where what is measured goes
        (tmp_path / folder).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    command = [sys.executable, "-m", "hepti_mpi", "run", "--weights", str(store), "--quiet"]
    for home in (str(tmp_path / "home"), "/proc"):
        environment = kept | {"HOME": home, "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS)
        assert (done.returncode, done.stderr) == (0, "")
    assert not list((tmp_path / "home").iterdir())
