"""The file for Prometheus, read back by Prometheus' own parser."""

import errno
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from clusters import cluster
from prometheus_client.parser import text_string_to_metric_families

from hepti_mpi.commands import main
from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.search import choose
from hepti_mpi.program.placement import whole
from hepti_mpi.serving import metrics
from hepti_mpi.tuning.watch import Steady
from hepti_mpi.weights import writing

SPEC = random_model("tiny-bert").spec


@cache
def two_plans():
    """Planned once somebody asks: every process that collects tests would plan otherwise."""
    return [choose(SPEC, "hash", cluster(speeds, mbit=100_000), Demand(97)).chosen.plan for speeds in ((9, 7, 8), (9, 1, 8))]


class Switching(Steady):
    """A watch that switches to another plan once."""

    def next(self, left):
        return {"do": "swap", "plan": two_plans()[1].to_json()} if left == 5 else super().next(left)


def read(path):
    """Return the samples of a file, by name and labels."""
    families = text_string_to_metric_families(path.read_text())
    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}


@pytest.fixture
def metered(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "EVERY_SECONDS", 0.0)
    said = []
    counters = metrics.Metered(tmp_path / "hepti.prom", "tiny", 7, said.append)
    return metrics.MeteredWatch(Switching(), counters, two_plans()[0]), tmp_path / "hepti.prom", said


def answered(*rows, seconds):
    return SimpleNamespace(requests=[SimpleNamespace(rows=count) for count in rows], seconds=seconds)


def test_a_run_is_told(metered):
    watch, path, said = metered
    assert read(path)["hepti_running",] == 1 and read(path)["hepti_requests_total",] == 0
    watch.next(7)
    watch.answered(0, [[10], [12, 8]], [0.1, 0.3], [0.01, 0.02])
    watch.metered.event(answered(10, seconds=0.1))
    watch.metered.event(answered(4, 4, 8, 4, seconds=0.3))
    watch.heard(2, {"number": 0, "compute": [0.03, 0.04]})
    watch.heard(1, {"pulse": 1.5})
    watch.metered.write()
    samples = read(path)
    assert samples["hepti_requests_total",] == 5 and samples["hepti_batches_total",] == 2 and samples["hepti_rows_total",] == 30
    assert samples["hepti_batch_seconds_sum",] == pytest.approx(0.4) and samples["hepti_batch_seconds_bucket", ("le", "0.2")] == 1
    hosts = [("host", host) for host in two_plans()[0].hosts]
    assert samples["hepti_rank_compute_seconds", hosts[2], ("rank", "2")] == 0.04
    assert samples["hepti_rank_compute_seconds", hosts[0], ("rank", "0")] == 0.02
    assert ("hepti_rank_compute_seconds", hosts[1], ("rank", "1")) not in samples
    assert samples["hepti_batches_left",] == 5 and samples["hepti_plan_switches_total",] == 0
    assert samples["hepti_rank_rows", hosts[1], ("rank", "1")] == two_plans()[0].rows[1] and not said


def test_teams_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "EVERY_SECONDS", 0.0)
    with metrics.Metered(tmp_path / "hepti.prom", "tiny", 2, print) as metered:
        metered.planned("teams", whole(two_plans()[0]).hash)
        metered.event(answered(3, 4, seconds=0.5))
        found = read(tmp_path / "hepti.prom")
        assert (found["hepti_requests_total",], found["hepti_rows_total",], found["hepti_batches_total",]) == (2, 7, 1)
        assert (found["hepti_batches_left",], found["hepti_running",]) == (1, 1)
        assert any(key[0] == "hepti_plan_info" and ("strategy", "teams") in key for key in found)
    found = read(tmp_path / "hepti.prom")
    assert (found["hepti_batches_left",], found["hepti_running",]) == (0, 0)


def test_a_switch_is_told(metered):
    watch, path, _ = metered
    assert watch.next(5)["do"] == "swap"
    assert read(path)["hepti_plan_switches_total",] == 0
    with watch.metered:
        watch.swapped(0.5, 0.2, "float32")
    samples = read(path)
    assert samples["hepti_plan_switches_total",] == 1 and samples["hepti_running",] == 0 and samples["hepti_batches_left",] == 0
    assert samples["hepti_rank_rows", ("host", two_plans()[1].hosts[1]), ("rank", "1")] == two_plans()[1].rows[1]
    plans = [key for key in samples if key[0] == "hepti_plan_info"]
    assert len(plans) == 1 and ("hash", two_plans()[1].hash) in plans[0]


def test_a_full_disk_costs_no_answers(metered):
    watch, path, said = metered
    path.unlink()
    path.parent.chmod(0o755)
    path.mkdir()  # what stands where the file should be cannot be replaced
    for _ in range(3):
        watch.metered.event(answered(1, seconds=0.1))
    with watch.metered:  # nor when all ends, which is told in any case
        pass
    assert len(said) == 1 and "cannot be written any more" in said[0]


@pytest.mark.parametrize("name, why", [
    ("metrics.txt", "does not end in .prom"), ("nowhere/x.prom", "does not exist"), ("folder.prom", "is a folder"),
])  # fmt: skip
def test_a_file_that_makes_no_sense(tmp_path, name, why):
    (tmp_path / "folder.prom").mkdir()
    with pytest.raises(InputError, match=why):
        metrics.check_path(tmp_path / name)


def test_that_metrics_cannot_be_written_is_told_whatever_was_asked_for(tmp_path, monkeypatch):
    def full(path, registry):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "write_to_textfile", full)
    monkeypatch.chdir(tmp_path)
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    np.savez("in.npz", input_ids=np.ones((3, 5), np.int64), attention_mask=np.ones((3, 5), np.int64))
    words = ["run", "--weights", "tiny.h5", "--input", "in.npz", "--output", "out.npz", "--metrics", "m.prom", "--threads", "1", "--quiet"]
    done = CliRunner().invoke(main.main, words)
    assert done.exit_code == 0 and done.stderr == "metrics m.prom cannot be written: No space left on device\n"
