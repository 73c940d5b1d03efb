"""Every cluster of the lab with the whole program: a small model, several methods, all over real ssh and shaped links.

What is checked is that all methods answer alike and that the records hold together; the times of so small a model say nothing.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab import check
from lab.check import PATIENCE
from lab.clusters import read_clusters

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
ROOT = Path(__file__).parent.parent
WHY_NOT = check.obstacle()
OTHERS = ("hepti-float16", "sequence", "megatron", "galaxy-boost", "coedge")  # beside hepti and single, two in turn on each cluster


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "tiny-bert.h5"
    subprocess.run([sys.executable, "-m", "hepti_mpi", "slice", "random:tiny-bert", path], cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
@pytest.mark.parametrize("number, cluster", list(enumerate(read_clusters())))
def test_bench_on_every_cluster(number, cluster, store):
    methods = ("hepti", *(OTHERS[(2 * number + more) % len(OTHERS)] for more in range(2)), "single")
    records = store.parent / f"{cluster}.jsonl"
    words = ["bench", "--weights", store, "--rows", "40,24:1", "--repeat", "2", "--methods", ",".join(methods), "--output", records]
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "run", "--share", store.parent, cluster, "--", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(one["model"], one["rows"]) for one in summaries] == [("tiny-bert", 40), ("tiny-bert-1-layers", 24)]
    for summary in summaries:
        assert summary["format"] == "hepti-bench" and set(summary["methods"]) == set(methods)
        assert all(len(found["samples_seconds"]) == 2 for found in summary["methods"].values())
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line for line in lines if line.get("format") == "hepti-bench"] == summaries
    ranks = len(read_clusters()[cluster].hosts)
    for line in lines:
        if line.get("kind") == "method":
            assert line["largest_difference"] <= (1e-2 if line["plan"]["wire"] == "float16" else 1e-4), line["method"]
        if line.get("kind") == "timeline":
            assert [rank["host"] for rank in line["ranks"]] == [host.name for host in read_clusters()[cluster].hosts]
            assert len(line["ranks"]) == ranks and any(rank["events"] for rank in line["ranks"])
