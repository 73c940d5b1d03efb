"""Bad input under mpirun: one sentence, an exit code that is not 0, all ranks end, no traceback, nothing half-written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from decoders import write_folder

from hepti_mpi.commands import main
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

Ended = subprocess.CompletedProcess[str]
Case = tuple[tuple[object, ...], tuple[str, ...], int]  # of a job that is refused: arguments, words of the sentence, ranks
MPIRUN = Path(sys.executable).parent / "mpirun"
AT_ONCE = 4  # jobs
ALONE: set[tuple[str, int]] = set()  # commands and numbers of ranks of which a job by itself was refused
SECONDS = 300  # a rank that hangs is a failure; a start takes about 3 s on an idle machine


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny.h5"
    writing.write(path, random_model("tiny-bert"))
    return path


def launch_environment(ranks: int = 1) -> dict[str, str]:
    """Return what a job is started with; what so many ranks have measured is kept for the next job of as many."""
    environment = {key: value for key, value in os.environ.items() if key != "HEPTI_TRACEBACK"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_hwloc_default_binding_policy": "none"}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    environment["XDG_CACHE_HOME"] = str(Path(os.environ["XDG_CACHE_HOME"], f"ranks{ranks}"))
    return environment


def launch(folder: Path, *arguments: object, ranks: int = 2, program: tuple[str, ...] = ("-m", "hepti_mpi")) -> Ended:
    command = [str(MPIRUN), "-n", str(ranks), sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, env=launch_environment(ranks))


def in_turn(folder: Path, jobs: Sequence[Sequence[object]], ranks: int) -> list[Ended]:
    """Return how each of some jobs ends that the same ranks do one after the other."""
    path = folder / f"jobs{ranks}.json"
    path.write_text(json.dumps([list(map(str, job)) for job in jobs]))
    done = launch(folder, path, ranks=ranks, program=(str(Path(__file__).with_name("in_turn.py")),))
    assert done.returncode == 0 and not done.stderr, done  # no rank has to end the others

    def told(number: int, what: str) -> list[str]:
        return [path.with_suffix(f".{number}.{rank}.{what}").read_text() for rank in range(ranks)]

    return [subprocess.CompletedProcess(job, max(map(int, told(number, "code"))), *("".join(told(number, what)) for what in ("out", "err")))
            for number, job in enumerate(jobs)]  # fmt: skip


def refused(result: Ended, *words: str) -> str:
    """Check that a run was refused properly and return its sentence."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr + result.stdout
    told = [line for line in result.stderr.splitlines() if re.match(r"error on \S+ \(rank \d+\): |[Ee]rror: ", line)]
    assert len(told) == 1, result.stderr
    for word in words:
        assert word in told[0], told[0]
    return told[0]


def each_refused(ended: Iterable[tuple[object, Ended, Sequence[str]]]) -> None:
    """Check that jobs were refused properly, each with the words of its own; all that were not are told at once."""
    wrong = []
    for job, result, words in ended:
        try:
            refused(result, *words)
        except AssertionError as error:
            wrong.append(f"{job}: {error}")
    assert not wrong, "\n\n".join(wrong)


def refused_in_turn(folder: Path, *jobs: tuple[Sequence[object], Sequence[str]]) -> None:
    """Check that two ranks refuse each of some jobs, one after the other."""
    results = in_turn(folder, [job for job, _ in jobs], 2)
    each_refused((job, result, words) for (job, words), result in zip(jobs, results))


def all_refused(folder: Path, *cases: Case) -> list[str]:
    """Check that jobs are refused properly; return what each told. The first of a command and number of ranks is a job by itself, the
    others are done by the same ranks in turn. Jobs run side by side: they wait most of the time, for the launcher or for the sentence."""
    alone = []
    for case in cases:
        if (kind := (str(case[0][0]), case[2])) not in ALONE:
            ALONE.add(kind)
            alone.append(case)
    together = [[case for case in cases if case not in alone and case[2] == ranks] for ranks in {ranks for *_, ranks in cases}]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ones = [pool.submit(launch, folder, *job, ranks=ranks) for job, _, ranks in alone]
        others = [pool.submit(in_turn, folder, [job for job, *_ in some], some[0][2]) for some in together if some]
    results = dict(zip(alone, (one.result() for one in ones)))
    results |= zip((case for some in together for case in some), (one for some in others for one in some.result()))
    each_refused((case[0], results[case], case[1]) for case in cases)
    return [results[case].stderr for case in cases]


@pytest.fixture(scope="module")
def planned(store, tmp_path_factory) -> tuple[Path, Path]:
    """A profile of 3 ranks and a plan for them."""
    folder = tmp_path_factory.mktemp("planned")
    profile, plan = folder / "p.json", folder / "plan.json"
    assert launch(folder, "profile", "--weights", store, "--output", profile, ranks=3).returncode == 0
    arguments = ["plan", "--weights", store, "--profile", profile, "--shares", "2,1,1", "--output", plan]
    done = CliRunner().invoke(main.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return profile, plan


def test_good_run_ends_with_its_document(store, tmp_path):
    result = launch(tmp_path, "run", "--weights", store, "--shares", "1,2,3", "--output", "x.jsonl", ranks=3)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["format"], record["format_version"], len(record["ranks"])) == ("hepti-run", 1, 3)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == record["requests"]


def test_no_home_and_letters_that_a_terminal_has_not(store, tmp_path):
    """As under cron or systemd, where MPI would not start."""
    (tmp_path / "in.txt").write_text("h\u00e9llo \u4e2d\n", encoding="utf-8")
    environment = {key: value for key, value in launch_environment().items() if key not in ("HOME", "USER")}
    command = [sys.executable, "-m", "hepti_mpi", "run", "--weights", store, "--input", tmp_path / "in.txt", "--quiet"]
    environment["PYTHONIOENCODING"] = "latin-1"
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=SECONDS, env=environment)
    assert done.returncode == 0 and b"h\xe9llo \\u4e2d" in done.stdout, done


@pytest.mark.parametrize("command", [["run"], ["supervise", "hosts.txt", "--", "run"]], ids=["run", "supervise"])
def test_a_folder_for_open_mpi_that_cannot_be_made(store, tmp_path, command):
    """Open MPI ends by a broken memory access then."""
    (tmp_path / "hosts.txt").write_text("localhost slots=1\n")
    environment = launch_environment() | {"TMPDIR": "/proc/none"}
    words = [sys.executable, "-m", "hepti_mpi", *command, "--weights", store]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS, env=environment)
    assert done.returncode == 4 and "no folder in /proc/none, where TMPDIR leads: No such file or directory" in done.stderr, done
    assert "Traceback" not in done.stderr


def test_missing_store(tmp_path):
    named, unnamed = ("run", "--weights", "no.h5"), ("run",)
    refused_in_turn(tmp_path, (named, ("no.h5 not found", "hepti_mpi slice")), (unnamed, ("there is no store", "hepti_mpi slice")))


def test_stores_that_are_damaged_or_older_and_what_a_host_cannot_do(store, tmp_path):
    """Stores cut at any length: tests/test_store.py."""
    (tmp_path / "cut.h5").write_bytes(store.read_bytes()[:-1])
    with h5py.File(store) as file:
        offset = file["weights/layers.1.mlp.up.weight"].id.get_offset()
    content = bytearray(store.read_bytes())
    content[offset + 1000] ^= 4
    (tmp_path / "flip.h5").write_bytes(content)
    shutil.copy(store, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file.attrs["format_version"] = 0
    all_refused(
        tmp_path,
        (("run", "--weights", "flip.h5", "--shares", "1,1"), ("checksum", "layers.1.mlp.up.weight"), 2),
        (("run", "--weights", "cut.h5", "--shares", "1,1"), ("cut.h5",), 2),
        (("run", "--weights", "old.h5"), ("format 0", "this program reads 1"), 2),
        (("run", "--weights", store, "--threads", 1000), ("--threads 1000", "cores"), 2),
        (("run", "--weights", store, "--layout", "rows/rows", "--shares", "1,1", "--memory-limit", "1G,1K"), ("rank 1", "lacks"), 2),
    )


def test_checksum_that_fails_on_one_rank_only(store, planned, tmp_path):
    _, plan = planned
    arguments = ["slice", "random:tiny-bert", tmp_path / "tiny-bert.h5", "--plan", plan, "--ranks", tmp_path / "parts"]
    done = CliRunner().invoke(main.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    shutil.copytree(tmp_path / "parts", tmp_path / "some")
    (tmp_path / "some" / "rank02.h5").unlink()
    part = tmp_path / "parts" / "rank02.h5"
    with h5py.File(part) as file:
        offset = next(item.id.get_offset() for item in file["weights"].values())
    content = bytearray(part.read_bytes())
    content[offset + 2] ^= 1
    part.write_bytes(content)
    folders = {"parts": "checksum", "some": "rank02.h5 not found"}
    results = in_turn(tmp_path, [["run", "--weights", parts, "--plan", plan] for parts in folders], 3)
    each_refused((parts, result, ("(rank 2)", said)) for (parts, said), result in zip(folders.items(), results))


def test_plan_of_another_model_or_rank_count(store, planned, tmp_path):
    _, plan = planned
    writing.write(tmp_path / "vit.h5", random_model("tiny-vit"))
    data = json.loads(plan.read_text())
    (tmp_path / "older.json").write_text(json.dumps(data | {"format_version": 7}))
    data["teams"][0][0]["plan"]["heads"] = [7, 0, 0]
    (tmp_path / "edited.json").write_text(json.dumps(data))
    all_refused(
        tmp_path,
        (("run", "--weights", store, "--plan", plan), ("3 ranks", "2"), 2),
        (("run", "--weights", "vit.h5", "--plan", plan), ("tiny-bert", "tiny-vit"), 3),
        (("run", "--weights", store, "--plan", "older.json"), ("format version 7",), 2),
        (("run", "--weights", store, "--plan", "edited.json"), ("hash",), 2),
        (("run", "--weights", store, "--plan", "no.json"), ("no.json cannot be read",), 2),
    )


def test_profile_of_other_hosts(store, planned, tmp_path):
    profile = tmp_path / "p.json"
    shutil.copy(planned[0], profile)
    data = json.loads(profile.read_text())
    (entry,) = data["profiles"]
    entry["nodes"][1]["host"] = "elsewhere"
    (tmp_path / "elsewhere.json").write_text(json.dumps(data))
    (tmp_path / "cut.json").write_text("[1, 2")
    all_refused(
        tmp_path,
        (("run", "--weights", store, "--profile", profile), ("3 ranks", "profile --fresh"), 2),
        (("run", "--weights", store, "--profile", "elsewhere.json"), ("elsewhere",), 3),
        (("run", "--weights", store, "--profile", "cut.json"), ("not JSON",), 2),
    )


def test_a_profile_that_cannot_be_kept(store, tmp_path):
    """A run goes on without; the command that is for it does not end as if it were there."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    outputs = {"folder": f"{tmp_path / 'folder'} is a folder; name a file", "file/p.json": f"{tmp_path / 'file'} is no folder"}
    jobs = ((("profile", "--weights", store, "--output", tmp_path / output), (said,)) for output, said in outputs.items())
    refused_in_turn(tmp_path, *jobs)


def test_heads_of_which_no_cache_is_kept(tmp_path):
    """Told before anything is measured: kernels are timed with a cache, too."""
    folder = write_folder("gpt2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_head": 12}))  # of 4 numbers; all tensors are as before
    writing.write(tmp_path / "gpt2.h5", read_model(folder))
    said = "heads of 4 numbers are not supported for text: their width must be a multiple of 8"
    np.savez(tmp_path / "x.npz", input_ids=[[5, 6]])
    written = ("run", "--weights", "gpt2.h5", "--input", "x.npz", "--fresh")
    all_refused(tmp_path, (written, (said,), 2), (("profile", "--weights", "gpt2.h5"), (said,), 1))


def test_inputs(store, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "long.txt").write_text("short\n" + "word " * 2000 + "\n")
    np.savez(tmp_path / "ids.npz", input_ids=np.full((1, 3), 10**6))
    writing.write(tmp_path / "vit.h5", random_model("tiny-vit"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    all_refused(
        tmp_path,
        (("run", "--weights", store, "--input", "empty.txt"), ("empty",), 2),
        (("run", "--weights", store, "--input", "long.txt", "--strict"), ("line 2", "512"), 2),
        (("run", "--weights", store, "--input", "ids.npz", "--strict"), ("ids.npz",), 2),
        (("run", "--weights", store, "--input", "nothing.txt"), ("nothing.txt",), 2),
        (("run", "--weights", store, "--output", "no/x.npz"), ("no/x.npz",), 2),
        (("run", "--weights", "vit.h5", "--input", "broken.png", "--strict"), ("broken.png",), 2),
    )
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_memory_must_hold_the_longest_request_too(store, tmp_path):
    mask = np.zeros((9, 512), np.int64)
    mask[:, :4], mask[4] = 1, 1
    np.savez(tmp_path / "mixed.npz", input_ids=np.full((9, 512), 7), attention_mask=mask)
    np.savez(tmp_path / "long.npz", input_ids=np.full((1, 512), 7))
    words = "run", "--weights", store, "--batch-rows", 1, "--memory-limit", "2M", "--input"
    all_refused(tmp_path, *(((*words, name), ("lacks", "512 rows"), 2) for name in ("long.npz", "mixed.npz")))


def test_closed_standard_input(store, tmp_path):
    environment = launch_environment()
    command = f"exec '{MPIRUN}' -n 2 '{sys.executable}' -m hepti_mpi run --weights '{store}' --input - <&-"
    for _ in range(3):
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=environment)
        if "PMIx server's listener thread failed to start" not in result.stderr:  # mpirun itself, now and then, where 0 is closed
            break
    refused(result, "standard input")


def test_standard_input_under_mpirun(store, tmp_path):
    """A pipe and a redirected file both arrive whole and with an end."""
    (tmp_path / "in.txt").write_text("good morning\nhow are you\n")
    for way in ("cat in.txt |", "< in.txt"):
        command = f"{way} '{MPIRUN}' -n 2 '{sys.executable}' -m hepti_mpi run --weights '{store}' --input - --output out.jsonl"
        subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=SECONDS, cwd=tmp_path, env=launch_environment(2))
        told = [json.loads(line)["input"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert told == ["good morning", "how are you"]


def test_boards_that_can_not_be_emulated(store, tmp_path):
    jobs = (("run", "2,3,4", "3 entries"), ("bench", "2", "1 entry"))
    refused_in_turn(tmp_path, *(((command, "--weights", store, "--emulate", boards), (f"--emulate has {said}, the job has 2 ranks",))
                                for command, boards, said in jobs))  # fmt: skip
    assert not list(tmp_path.rglob("*.profile.json"))


def test_the_command_for_another_number_of_ranks_is_whole(store, tmp_path):
    """What was advised was mpirun and a number, and did nothing."""
    command = [str(MPIRUN), "-np", "3", sys.executable, "-m", "hepti_mpi", "run", "--weights", str(store), "--emulate", "pi4,pi4"]
    environment = launch_environment(2) | {"PATH": f"{MPIRUN.parent}{os.pathsep}{os.environ['PATH']}"}
    for way in ("taken", "copied"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=environment)
        assert (done.returncode == 0) == (way == "copied"), done.stderr
        if way == "taken":
            told = re.search(r"--emulate has 2 entries, the job has 3 ranks; start one for each with: (.*)", done.stderr)
            assert told, done.stderr
            command = shlex.split(told[1])
            assert command[:3] == ["mpirun", "-n", "2"] and "-np" not in command


@pytest.mark.parametrize("words, named", [
    (("serve", "--port", "0"), "serve [HOSTFILE]"), (("supervise", "hosts.txt", "--", "run"), "supervise HOSTFILE -- run"),
])  # fmt: skip
def test_what_calls_mpirun_is_not_called_by_it(words, named, store, tmp_path):
    """A service started so waited for ever: the ranks that it started took themselves for one of mpirun's."""
    (tmp_path / "hosts.txt").write_text("localhost slots=2\n")
    refused(launch(tmp_path, *words, *(("--weights", store) if words[0] == "serve" else ())), "without mpirun", named)


def test_boards_for_some_ranks_only(store, tmp_path):
    """Ranks that pretend and ranks that do not would measure and exchange in different ways, and wait for each other for ever."""
    (tmp_path / "board").write_text("pi4")
    line = f"[ $OMPI_COMM_WORLD_RANK = 1 ] && export HEPTI_EMULATE_FILE=board; exec '{sys.executable}' -m hepti_mpi run --weights '{store}'"
    command = [str(MPIRUN), "-n", "3", "bash", "-c", line]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=launch_environment())
    refused(result, "no board is given for rank 0", "and 1 more of 3 ranks", "HEPTI_EMULATE_FILE")
    assert not list(tmp_path.rglob("*.profile.json"))


def test_emulated_boards_and_the_division_of_others(store, tmp_path):
    """A profile of emulated boards is not one of this machine, and the other way round."""
    profile = tmp_path / "p.json"
    arguments = ["run", "--weights", store, "--strategy", "galaxy", "--boost", "--emulate", "2,pi4"]
    result = launch(tmp_path, "profile", "--weights", store, "--output", profile, "--emulate", "2,pi4")
    assert result.returncode == 0, result.stderr
    result = launch(tmp_path, *arguments, "--profile", profile)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["strategy"] == "tensor" and [item["emulated_board"] for item in record["ranks"]] == ["2", "pi4"]
    assert all(0 <= item["overruns"] <= 1 for item in record["ranks"])
    refused(launch(tmp_path, *arguments[:-1], "2,pi5", "--profile", profile), "p.json", "emulated boards 2,pi4, here")


def test_options_that_do_not_go_together_are_told_once(store, tmp_path):
    refused_in_turn(
        tmp_path,
        (("run", "--weights", store, "--boost"), ("--boost is for the other systems' strategies",)),
        (("bench", "--weights", store, "--methods", "fly"), ("there is no method 'fly'",)),
    )


def test_a_bench_of_bad_input(store, tmp_path):
    """What does not fit is left out and told; where nothing does, or nothing can be kept, the bench does not begin."""
    words = ["bench", "--weights", store, "--rows", 8, "--repeat", 1]
    jobs = [["bench", "--weights", store, "--output", "no/r.jsonl"], [*words, "--memory-limit", "1M,1M,1M"],
            [*words, "--methods", "voltage,single", "--memory-limit", "1k"],
            [*words, "--methods", "megatron,single", "--memory-limit", "250k", "--output", "r.jsonl"]]  # fmt: skip
    unkept, limited, none, result = in_turn(tmp_path, jobs, 2)
    said = ("no/r.jsonl",), ("--memory-limit has 3 entries, the job has 2 ranks",), ("voltage", "lacks", "bytes")
    each_refused(zip(jobs, (unkept, limited, none), said))
    assert result.returncode == 0, result.stderr
    assert any(line.startswith("single does not fit: rank") for line in result.stdout.splitlines()), result.stdout
    last = json.loads(result.stdout.splitlines()[-1])
    assert list(last["methods"]) == ["megatron"] and last["bound_seconds"] > 0
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[-1]) == last


def test_slicing_for_a_plan_of_another_model_keeps_the_store(store, planned, tmp_path):
    _, plan = planned
    shutil.copy(store, tmp_path / "keep.h5")
    before = (tmp_path / "keep.h5").read_bytes()
    refused(
        launch(tmp_path, "slice", "random:tiny-vit", "keep.h5", "--plan", plan, "--ranks", "parts", ranks=1), "tiny-bert", "the store holds"
    )
    assert (tmp_path / "keep.h5").read_bytes() == before
    result = launch(tmp_path, "run", "--weights", store, "--plan", plan, "--weights-mode", "mapped")
    assert result.returncode != 0 and "--weights-mode" in result.stderr


def test_usage_error_is_told_once(store, tmp_path):
    result = launch(tmp_path, "run", "--nonsense")
    assert result.returncode != 0
    assert result.stderr.count("No such option") == 1, result.stderr


def test_forced_shares_and_limits(store, tmp_path):
    """What cannot be asked of so many ranks is refused before they are measured."""
    writes = tmp_path / "tiny-llama.h5"
    assert CliRunner().invoke(main.main, ["slice", "random:tiny-llama", str(writes)]).exit_code == 0
    cases = (
        (("run", "--weights", store, "--shares", "1,1,1"), "--shares has 3 entries, the job has 2 ranks"),
        (("run", "--weights", store, "--memory-limit", "1G,1G,1G"), "--memory-limit has 3 entries", "2 ranks"),
        (("run", "--weights", store, "--strategy", "voltage", "--memory-limit", "1G,1G,1G"), "--memory-limit has 3 entries"),
        (("bench", "--weights", store, "--memory-limit", "1G,1G,1G"), "--memory-limit has 3 entries"),
        (("run", "--weights", writes, "--shares", "1,1,1"), "--shares has 3 entries, the job has 2 ranks"),
        (("run", "--weights", writes, "--memory-limit", "1G,1G,1G"), "--memory-limit has 3 entries"),
        (("run", "--weights", writes, "--layout", "rows/rows"), "layout rows/rows divides rows", "there are heads/columns and pipeline"),
        (("run", "--weights", writes, "--strategy", "sequence"), "strategy sequence divides rows", "there are auto, tensor"),
        (("profile", "--weights", store, "--output", "."), "--output . is a folder"),
        (("profile", "--weights", store, "--output", writes), "was not written by this program"),
        (("bench", "--weights", store, "--output", "answers.jsonl"), "answers.jsonl line 1 is of kind null"),
    )
    (tmp_path / "answers.jsonl").write_text('{"input": "x"}\n')
    for words, said in zip(cases, all_refused(tmp_path, *((words, tuple(expected), 2) for words, *expected in cases))):
        assert "measuring" not in said, words
    assert not list(tmp_path.rglob("*.profile.json"))
    limited = ((("run", "--weights", model, "--memory-limit", "1k"), ("(rank 0)", "lacks", "bytes"), 2) for model in (store, writes))
    for said in all_refused(tmp_path, *limited):
        assert "MPI_ABORT" not in said, "every rank knows it: none has to end the others"


@pytest.mark.parametrize("place, victim", [
    ("engine.sessions.build", 0), ("serving.loop.answer", 0), ("serving.loop.answer", 2), ("engine.measuring.gathered", 2),
    ("engine.loading.load", 2),
])  # fmt: skip
def test_a_rank_that_raises_anywhere_ends_all(store, planned, tmp_path, place, victim):
    """A fault of the program itself, planted in one rank by a sitecustomize of its own."""
    module, _, name = place.rpartition(".")
    (tmp_path / "faulty.py").write_text(f"""
import os, sys
import hepti_mpi.{module} as target
def fail(*_, **__):
    raise ZeroDivisionError("planted")
if os.environ["OMPI_COMM_WORLD_RANK"] == "{victim}":
    target.{name} = fail
from hepti_mpi.__main__ import main
sys.argv[0] = "hepti_mpi"
main()
""")
    speeds = ["--fresh"] if name in ("build", "gathered") else ["--profile", planned[0]]  # the others come after measuring
    command = [str(MPIRUN), "-n", "3", sys.executable, "faulty.py", "run", "--weights", store, "--shares", "1,1,1", *speeds]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, env=launch_environment(3))
    refused(result, f"(rank {victim})", "planted (", ".py, line ")
