"""Bad input under mpirun: one sentence, an exit code that is not 0, all ranks end, no traceback, nothing half-written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from hepti_mpi import cli
from hepti_mpi.models.random_models import random_model
from hepti_mpi.shards import store as stores

MPIRUN = Path(sys.executable).parent / "mpirun"
SECONDS = 60  # a rank that hangs is a failure; a start takes about 3 s on an idle machine


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny.h5"
    stores.write(path, random_model("tiny-bert"))
    return path


def launch(folder: Path, *arguments: object, ranks: int = 3, extra: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HEPTI_TRACEBACK"} | (extra or {})
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_hwloc_default_binding_policy": "none"}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [str(MPIRUN), "-n", str(ranks), sys.executable, "-m", "hepti_mpi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, env=environment)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> str:
    """Check that a run was refused properly and return its sentence."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr + result.stdout
    told = [line for line in result.stderr.splitlines() if re.match(r"error on \S+ \(rank \d+\): |Error: ", line)]
    assert len(told) == 1, result.stderr
    for word in words:
        assert word in told[0], told[0]
    return told[0]


def profile_and_plan(store: Path, folder: Path, ranks: int = 3) -> tuple[Path, Path]:
    profile, plan = folder / "p.json", folder / "plan.json"
    assert launch(folder, "profile", "--weights", store, "--output", profile, ranks=ranks).returncode == 0
    arguments = ["plan", "--weights", store, "--profile", profile, "--shares", "2,1,1", "--output", plan]
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return profile, plan


def test_good_run_ends_with_its_document(store, tmp_path):
    result = launch(tmp_path, "run", "--weights", store, "--shares", "1,2,3", "--output", "x.jsonl")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["format"], record["format_version"], len(record["ranks"])) == ("hepti-run", 1, 3)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == record["requests"]


def test_missing_store(tmp_path):
    refused(launch(tmp_path, "run", "--weights", "no.h5"), "no.h5 not found", "hepti_mpi slice")
    refused(launch(tmp_path, "run"), "there is no store", "hepti_mpi slice")


def test_truncated_store(store, tmp_path):
    content = store.read_bytes()
    for kept in (0, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.h5").write_bytes(content[:kept])
        refused(launch(tmp_path, "run", "--weights", "cut.h5", "--shares", "1,1,1"), "cut.h5")


def test_flipped_bit(store, tmp_path):
    with h5py.File(store) as file:
        offset = file["weights/layers.1.mlp.up.weight"].id.get_offset()
    content = bytearray(store.read_bytes())
    content[offset + 1000] ^= 4
    (tmp_path / "flip.h5").write_bytes(content)
    refused(launch(tmp_path, "run", "--weights", "flip.h5", "--shares", "1,1,1"), "checksum", "layers.1.mlp.up.weight")


def test_checksum_that_fails_on_one_rank_only(store, tmp_path):
    _, plan = profile_and_plan(store, tmp_path)
    arguments = ["slice", "random:tiny-bert", tmp_path / "tiny-bert.h5", "--plan", plan, "--ranks", tmp_path / "parts"]
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    part = tmp_path / "parts" / "rank02.h5"
    with h5py.File(part) as file:
        offset = next(item.id.get_offset() for item in file["weights"].values())
    content = bytearray(part.read_bytes())
    content[offset + 2] ^= 1
    part.write_bytes(content)
    refused(launch(tmp_path, "run", "--weights", "parts", "--plan", plan), "(rank 2)", "checksum")
    part.unlink()
    refused(launch(tmp_path, "run", "--weights", "parts", "--plan", plan), "(rank 2)", "rank02.h5 not found")


def test_older_format(store, tmp_path):
    shutil.copy(store, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file.attrs["format_version"] = 0
    refused(launch(tmp_path, "run", "--weights", "old.h5"), "format 0", "this program reads 1")


def test_plan_of_another_model_or_rank_count(store, tmp_path):
    _, plan = profile_and_plan(store, tmp_path)
    refused(launch(tmp_path, "run", "--weights", store, "--plan", plan, ranks=2), "3 ranks", "2")
    stores.write(tmp_path / "vit.h5", random_model("tiny-vit"))
    refused(launch(tmp_path, "run", "--weights", "vit.h5", "--plan", plan), "tiny-bert", "tiny-vit")
    data = json.loads(plan.read_text())
    (tmp_path / "older.json").write_text(json.dumps(data | {"format_version": 7}))
    refused(launch(tmp_path, "run", "--weights", store, "--plan", "older.json"), "format version 7")
    (tmp_path / "edited.json").write_text(json.dumps(data | {"heads": [7, 0, 0]}))
    refused(launch(tmp_path, "run", "--weights", store, "--plan", "edited.json"), "hash")
    refused(launch(tmp_path, "run", "--weights", store, "--plan", "no.json"), "no.json cannot be read")


def test_profile_of_other_hosts(store, tmp_path):
    profile, _ = profile_and_plan(store, tmp_path)
    refused(launch(tmp_path, "run", "--weights", store, "--profile", profile, ranks=2), "3 ranks", "profile --fresh")
    data = json.loads(profile.read_text())
    data["nodes"][1]["host"] = "elsewhere"
    profile.write_text(json.dumps(data))
    refused(launch(tmp_path, "run", "--weights", store, "--profile", profile), "elsewhere")
    profile.write_text("[1, 2")
    refused(launch(tmp_path, "run", "--weights", store, "--profile", profile), "not JSON")


def test_inputs(store, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "long.txt").write_text("short\n" + "word " * 2000 + "\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    np.savez(tmp_path / "ids.npz", input_ids=np.full((1, 3), 10**6))
    refused(launch(tmp_path, "run", "--weights", store, "--input", "empty.txt"), "empty")
    refused(launch(tmp_path, "run", "--weights", store, "--input", "long.txt"), "line 2", "512")
    refused(launch(tmp_path, "run", "--weights", store, "--input", "bad.jsonl"), "line 2")
    refused(launch(tmp_path, "run", "--weights", store, "--input", "ids.npz"), "ids.npz")
    refused(launch(tmp_path, "run", "--weights", store, "--input", "nothing.txt"), "nothing.txt")
    refused(launch(tmp_path, "run", "--weights", store, "--output", "no/x.npz"), "no/x.npz")
    stores.write(tmp_path / "vit.h5", random_model("tiny-vit"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    refused(launch(tmp_path, "run", "--weights", "vit.h5", "--input", "broken.png"), "broken.png")
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_usage_error_is_told_once(store, tmp_path):
    result = launch(tmp_path, "run", "--nonsense")
    assert result.returncode != 0
    assert result.stderr.count("No such option") == 1, result.stderr


def test_forced_shares_and_limits(store, tmp_path):
    refused(launch(tmp_path, "run", "--weights", store, "--shares", "1,1"), "2 entries", "3 ranks")
    refused(launch(tmp_path, "run", "--weights", store, "--memory-limit", "100k"), "lacks", "bytes")


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("place", ["graphs.build", "job.answer", "probe.measure", "job.load"])
def test_a_rank_that_raises_anywhere_ends_all(store, tmp_path, victim, place):
    """A fault of the program itself, planted in one rank by a sitecustomize of its own."""
    module, name = place.split(".")
    folder = {"graphs": "runtime", "job": "runtime", "probe": "cluster"}[module]
    (tmp_path / "faulty.py").write_text(f"""
import os, sys
import hepti_mpi.{folder}.{module} as target
def fail(*_, **__):
    raise ZeroDivisionError("planted")
if os.environ["OMPI_COMM_WORLD_RANK"] == "{victim}":
    target.{name} = fail
from hepti_mpi.__main__ import main
sys.argv[0] = "hepti_mpi"
main()
""")
    environment = dict(os.environ) | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"PRTE_MCA_hwloc_default_binding_policy": "none", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    environment.pop("HEPTI_TRACEBACK", None)
    command = [str(MPIRUN), "-n", "3", sys.executable, "faulty.py", "run", "--weights", str(store), "--fresh", "--shares", "1,1,1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=environment)
    refused(result, f"(rank {victim})", "planted")
