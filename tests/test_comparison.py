"""The table and the records of a bench, from samples that are made up: their numbers, and that the report reads what is written."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import methods
from hepti_mpi.planning.bound import Bound
from hepti_mpi.planning.demand import Demand
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import kind_of
from hepti_mpi.program.steps import Compute
from hepti_mpi.reporting.benches import read_benches
from hepti_mpi.tuning import comparison
from hepti_mpi.tuning.bench import Samples

SPEC = random_model("tiny-bert").spec
PROFILE = cluster((9, 7, 8), mbit=1000)
BOARDS = ["2.5", "pi4", "10"]
REQUESTS = 4


def sample(name, median, seed=0):
    """A method that took about `median` seconds; step s of rank r began at s ms and took r + 1 ms."""
    decision = methods.decide(name, SPEC, "hash", PROFILE, Demand(26)).chosen
    program = make_program(SPEC, decision.plan)
    every = np.zeros((3, REQUESTS, len(program)))
    for rank in decision.plan.active:
        every[rank] = 1e-3 * (rank + 1)
    began = np.tile(np.arange(len(program)) * 1e-3, (3, 1))
    held = [{"host": f"pi{rank}", "weight_bytes": (rank + 1) << 20} for rank in range(3)]
    seconds = [median * (1 + 0.1 * number) for number in (-1, 0, 0, 1)]
    part = SimpleNamespace(plan=decision.plan, program=program)
    return Samples(part, None, decision.price, seconds, every=every, timeline=began, error=1e-6 * seed, held=held)


@pytest.fixture(scope="module")
def samples():
    """Slower first, so that somebody has to sort them."""
    medians = {"megatron": 0.4, "hepti": 0.2, "single": 0.5}
    return {name: sample(name, median, seed) for seed, (name, median) in enumerate(medians.items())}


def found(samples, boards=BOARDS):
    bounds = {"float32": Bound(0.15, 0.1)}
    above = {name: comparison.above_of(one, SPEC, PROFILE, 26, bounds) for name, one in samples.items()}
    return comparison.Found("tiny-bert", 26, "mixed4", boards, samples, bounds, above=above)


def table_of(samples, refused=()):
    return comparison.comparison(found(samples), dict(refused))


def cells(table, name):
    return next(line for line in table.splitlines() if line.startswith(f"{name} ")).split("  ")


# the table


def test_the_table_is_sorted_and_compares_with_ours(samples):
    table = table_of(samples)
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["hepti", "megatron", "single"]
    for name in ("hepti", "megatron", "single"):
        row = [cell.strip() for cell in cells(table, name) if cell.strip()]
        one = samples[name]
        median = float(np.median(one.seconds))
        assert row[1] == f"{median * 1e3:.1f}" and row[3] == f"{median / 0.2:.2f}"
        assert row[2] == f"{median * 1e3 * 0.93:.1f} - {median * 1e3 * 1.07:.1f}"
        assert row[4] == f"{one.price.seconds * 1e3:.1f}" and row[5] == f"{100 * (one.price.seconds / median - 1):+.1f} %"
        assert (row[6], row[7]) == (f"{1 / median:.2f}", f"{26 / median:.{0 if median < 0.26 else 1}f}")
        assert row[10] == "3.0 MiB" and row[-1] == kind_of(one.part.plan)


def test_what_is_possible_is_told(samples):
    table = table_of(samples)
    assert "bound, float32 on the wire: 150.0 ms" in table and "perfect division over all boards: 100.0 ms" in table
    assert [cell.strip() for cell in cells(table, "hepti") if cell.strip()][8] == "0.75"  # bound over median


def test_a_method_whose_messages_left_later_than_from_its_boards_does_not_count(samples):
    assert "does not count" not in table_of(samples)
    late = samples | {"megatron": replace(samples["megatron"], late_part=0.034)}
    assert table_of(late).splitlines()[-2:] == [
        "megatron does not count: 3.4 % of its time messages left later than from its boards",
        "measure again with nothing else running, or emulate slower boards: pi5*3 for pi5, in the lab --slow 3",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_screen(samples, width):
    text = comparison.comparison(found(samples), {}, width)
    every = {cell for line in table_of(samples).splitlines() for cell in line.split()}
    assert {cell for line in text.splitlines() for cell in line.split()} == every
    assert max(len(line) for line in text.splitlines() if line.startswith(("method", "hepti", "megatron", "single"))) <= width


def test_ranks_of_one_host_are_told_with_the_methods_that_have_them(samples):
    assert "slow each other" not in table_of(samples)
    ranks = {name: len(one.part.plan.active) for name, one in samples.items()}
    assert ranks["megatron"] == 3 and ranks["single"] == 1
    hosts = samples["megatron"].part.plan.hosts
    one = replace(found(samples), cores=dict.fromkeys(hosts, 1))
    assert "slow each other" not in comparison.comparison(one, {})
    crowded = {name: replace(one, part=SimpleNamespace(plan=replace(one.part.plan, hosts=("vm",) * 3), program=one.part.program))
               for name, one in samples.items()}  # fmt: skip
    said = comparison.crowded(replace(found(crowded), cores={"vm": 2}))
    names = [name for name, count in ranks.items() if count > 1]
    why = "which slow each other down by more than prices know"
    assert said == [f"vm has 2 cores for up to 3 ranks of one method, {why}: predicted too soon may be {', '.join(names)}"]


def test_a_large_difference_says_of_what_it_is(samples):
    assert "made-up rows" not in table_of(samples)
    large = samples | {"megatron": replace(samples["megatron"], error=4.0)}
    assert "difference: to the first method's answer to made-up rows" in table_of(large)


def test_it_says_how_long_it_took_and_where_the_records_are(samples):
    made = {"date": "2026-11-26 15:40 UTC", "machine": "vm", "ranks": 3, "versions": {}, "seconds": 75.2, "output": "r.jsonl"}
    one = replace(found(samples), made=made)
    assert comparison.comparison(one, {}).splitlines()[-1] == "75 s in all; records in r.jsonl"
    assert made.items() <= comparison.summary(one).items()


def test_without_ours_the_soonest_is_compared_with(samples):
    table = table_of({name: samples[name] for name in ("single", "megatron")})
    assert "x megatron" in table
    assert [cell.strip() for cell in cells(table, "megatron") if cell.strip()][3] == "1.00"
    assert [cell.strip() for cell in cells(table, "single") if cell.strip()][3] == "1.25"


def test_what_was_refused_is_told(samples):
    table = table_of(samples, {"voltage": "voltage does not fit: rank 1 on pi1 lacks 7 bytes", "ram": "no plan fits"})
    assert {"voltage does not fit: rank 1 on pi1 lacks 7 bytes", "ram: no plan fits"} <= set(table.splitlines())


# the records


def documents(samples, boards=BOARDS):
    """The lines as they are read again."""
    return [json.loads(json.dumps(line)) for line in comparison.lines(found(samples, boards))]


def test_the_summary_is_the_document_of_the_issue(samples):
    last = documents(samples)[-1]
    assert {"format", "format_version", "model", "rows", "cluster", "bound_seconds", "perfect_seconds", "methods"} == set(last)
    assert (last["format"], last["format_version"], last["model"], last["rows"]) == ("hepti-bench", 1, "tiny-bert", 26)
    assert last["cluster"] == "mixed4" and (last["bound_seconds"], last["perfect_seconds"]) == (0.15, 0.1)
    assert list(last["methods"]) == ["megatron", "hepti", "single"]
    for name, told in last["methods"].items():
        one = samples[name]
        assert set(told) == {"median_seconds", "predicted_seconds", "requests_per_second", "rows_per_second", "nearness", "overruns",
                             "late",
                             "above_bound", "wire_bytes", "plan_hash", "samples_seconds"}  # fmt: skip
        assert told["requests_per_second"] == pytest.approx(1 / np.median(one.seconds)) == pytest.approx(told["rows_per_second"] / 26)
        assert told["median_seconds"] == pytest.approx(np.median(one.seconds)) and told["samples_seconds"] == pytest.approx(one.seconds)
        above = told["above_bound"]
        assert sum(above["parts_seconds"].values()) == pytest.approx(above["seconds"], abs=1e-5)
        assert above["seconds"] == pytest.approx(told["median_seconds"] - 0.15) and above["rank"] in one.part.plan.active
        assert told["predicted_seconds"] == one.price.seconds and told["plan_hash"] == one.part.plan.hash
        assert told["wire_bytes"] == one.price.bytes and isinstance(told["wire_bytes"], int)
    assert last == json.loads(json.dumps(comparison.summary(found(samples))))


def test_every_request_and_one_timeline_are_kept(samples):
    lines = documents(samples)
    for name in ("hepti", "megatron", "single"):
        mine = [line for line in lines if line.get("method") == name]
        assert [line["kind"] for line in mine] == ["method", *["request"] * REQUESTS, "timeline"]
        first, *requests, timeline = mine
        assert first["plan"]["hash"] == samples[name].part.plan.hash and first["strategy"] == samples[name].part.plan.strategy
        assert first["largest_difference"] == samples[name].error
        assert sum(first["predicted"]["compute_seconds"]) == pytest.approx(samples[name].price.compute.sum())
        waited = samples[name].part.plan.collectives == "mpi"  # else links work while ranks compute, and a rank is next to never in them
        assert first["predicted"]["wire_seconds"] == (samples[name].price.wire if waited else 0.0)
        assert [line["number"] for line in requests] == list(range(REQUESTS))
        assert [line["seconds"] for line in requests] == pytest.approx(samples[name].seconds)
        program = samples[name].part.program
        computing = sum(isinstance(step, Compute) for step in program)
        for rank in samples[name].part.plan.active:
            assert requests[0]["compute_seconds"][rank] >= 1e-3 * (rank + 1) * computing * (1 - 1e-4)
        assert [item["rank"] for item in timeline["ranks"]] == [0, 1, 2]
        for item in timeline["ranks"]:
            assert (item["host"], item["board"]) == (f"pi{item['rank']}", BOARDS[item["rank"]])
            assert len(item["events"]) == (len(program) if item["rank"] in samples[name].part.plan.active else 0)
            begins = [begin for _, _, begin, _ in item["events"]]
            assert begins == sorted(begins) and {kind for _, kind, _, _ in item["events"]} <= {"compute", "wire"}
            assert all(end - begin == pytest.approx(1e-3 * (item["rank"] + 1)) for _, _, begin, end in item["events"])


def test_real_boards_are_not_named(samples):
    timelines = [line for line in documents(samples, [None] * 3) if line.get("kind") == "timeline"]
    assert timelines and all(item["board"] is None for line in timelines for item in line["ranks"])


def test_the_report_reads_what_is_written(samples, tmp_path):
    path = tmp_path / "records.jsonl"
    for _ in range(2):  # benches follow each other in a file
        with open(path, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in documents(samples))
    benches = read_benches(path)
    assert len(benches) == 2
    found = benches[1].methods
    assert set(found) == {"hepti", "megatron", "single"}
    for name, method in found.items():
        assert method.median == pytest.approx(np.median(samples[name].seconds)) and method.parts.shape == (REQUESTS, 3)
        assert method.predicted == samples[name].price.seconds and len(method.lanes) == 3
        assert sum(method.above.values()) == pytest.approx(method.median - 0.15, abs=1e-5)
