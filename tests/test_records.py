import doctest
import json
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster

from hepti_mpi.commands.jobs import Together
from hepti_mpi.commands.screen import Screen
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import reasons
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.search import choose
from hepti_mpi.program import placement
from hepti_mpi.program.steps import Compute, Sync
from hepti_mpi.reporting import generation, inspection, records, summary, tables, teams
from hepti_mpi.serving.loop import Course, Outcome

SPEC = random_model("tiny-bert").spec


@cache
def made():
    """Planned once somebody asks: every process that collects tests would plan otherwise."""
    return choose(SPEC, "hash", cluster((9, 7, 8), mbit=100_000), Demand(97))


def test_examples_in_docstrings():
    assert doctest.testmod(records).failed == 0 and doctest.testmod(tables).failed == 0


PROGRAM = (
    Sync("bcast", ("embedded",), ("x0",)),
    Compute((), "full"),
    Sync("allreduce", ("p0",), ("p1",)),
    Compute((), "full"),
    Sync("gatherv", ("y",), ("result",)),
)


def test_time_is_divided_without_comparing_clocks():
    """Three ranks, one left out; the shortest time in an exchange is the exchange, the rest is waiting."""
    seconds = np.array([
        [[1.0, 10, 2, 20, 1]],  # the root is in the layers, and the slowest
        [[3.0, 5, 7, 10, 1]],
        [[0.0, 0, 0, 0, 0]],
    ])  # fmt: skip
    spent = records.divide_time(PROGRAM, (0, 1), seconds)
    assert spent.compute.tolist() == [30, 15, 0]
    assert spent.wire.tolist() == [1 + 2 + 1, 1 + 2 + 1, 0]
    assert spent.wait.tolist() == [0, 2 + 5, 0]


def test_the_root_takes_part_in_the_outer_exchanges_only():
    seconds = np.array([[[1.0, 0, 0, 0, 9]], [[2.0, 5, 4, 5, 3]], [[3.0, 5, 6, 5, 3]]])
    spent = records.divide_time(PROGRAM, (1, 2), seconds)
    assert spent.wire.tolist() == [1 + 3, 1 + 4 + 3, 1 + 4 + 3]
    assert spent.wait.tolist() == [6, 1, 2 + 2]


def test_the_median_is_over_batches():
    seconds = np.zeros((1, 3, 5))
    seconds[0, :, 1] = 9, 1, 7
    assert records.divide_time(PROGRAM, (0,), seconds).compute.tolist() == [7]
    assert records.divide_time(PROGRAM, (0,), np.zeros((1, 0, 5))).compute.tolist() == [0]


def test_a_slice_is_no_exchange():
    program = (Sync("slice", ("x0",), ("x1",)),)
    spent = records.divide_time(program, (0, 1), np.array([[[1.0]], [[3.0]]]))
    assert spent.compute.tolist() == [1, 3] and spent.wire.tolist() == spent.wait.tolist() == [0, 0]


@pytest.mark.parametrize("boards, late, wire, expected", [
    ((None, None), 0, "float32", []),
    (("2.5", None), 0.001, "float32", ["emulated boards: 2.5, -"]),
    (("pi4", "3"), 0.02, "float16", [
        "emulated boards: pi4, 3; 2.0 % of the time messages left later than there: this result does not count; "
        "measure again with nothing else running, or emulate slower boards: pi5*3 for pi5, in the lab --slow 3",
        "float16 on the wire: results differ from the exact ones by up to 0.012"]),
    ((None, None), 0, ("float16", "int8", "int8"), [
        "int8 on the wire in 2 of 3 layers: results differ from the exact ones by up to 0.012"]),
])  # fmt: skip
def test_what_a_reader_must_know(boards, late, wire, expected):
    record = record_of(replace(made().chosen.plan, wire=wire))
    record["ranks"] = [item | {"emulated_board": board, "late": late} for item, board in zip(record["ranks"], boards)]
    record = json.loads(json.dumps(record | {"wire_error": 0.0123}))
    lines = summary.run_lines(record, None).splitlines()
    assert [line for line in lines if "emulated" in line or "on the wire" in line] == expected


def test_every_record_says_which_boards_were_pretended_and_whether_this_machine_kept_up():
    """Of requests (above), of texts and of teams; overruns, which are made up for, are counted only."""
    whole = placement.whole(made().chosen.plan)
    facts = [{"host": "pi", "threads": 1, "emulated_board": board, "overruns": 0.5, "late_seconds": late, "weight_bytes": 1,
              "peak_resident_bytes": 2} for board, late in (("pi4", 0.01), ("2.5", 0.1))]  # fmt: skip
    told = {"emulated_board": "2.5", "overruns": 0.5, "late": 0.05}
    answer = SimpleNamespace(prompt=[1], tokens=[2, 3], submitted=0.0, first_token=1.0, ended=2.0, made=0, finish_reason="stop")
    text = generation.generation_record(SPEC, [answer], 2.0) | generation.ranks_record(whole, {}, facts, (), 2.0)
    work = {"batches": 1, "requests": 1, "rows": 8, "seconds": 2.0, "predicted_rows_per_second": 5.0}
    team = teams.teams_record(SPEC, whole, [work], facts, 2.0, 2.0, {}, None)
    mend = "measure again with nothing else running, or emulate slower boards: pi5*3 for pi5, in the lab --slow 3"
    expected = f"emulated boards: pi4, 2.5; 5.0 % of the time messages left later than there: this result does not count; {mend}"
    for record, lines in ((text, generation.generation_lines(text)), (team, teams.teams_lines(team, ["pi", "pi", "pi"]))):
        assert {key: record["ranks"][1][key] for key in told} == told and "late_seconds" not in record["ranks"][0]
        assert expected in lines.splitlines()
    assert records.too_late({"hepti": 0.01, "megatron": 0.014}) == [
        "megatron does not count: 1.4 % of its time messages left later than from its boards", mend
    ]


def test_what_teams_did_adds_up():
    """Busy was a part of a time that was not said: rates while busy could not be reckoned from the others."""
    plan, facts = made().chosen.plan, [{"host": "pi", "threads": 1, "weight_bytes": 1, "peak_resident_bytes": 2}] * 3
    work = {"batches": 3, "requests": 30, "rows": 480, "seconds": 2.4, "predicted_rows_per_second": 5.0}
    record = teams.teams_record(SPEC, placement.whole(plan), [work], facts, 4.0, 3.0, {}, None)
    [one] = record["teams"]
    assert (record["answering_seconds"], one["busy"], one["busy_rows_per_second"]) == (3.0, 0.8, 200.0)
    assert one["busy_rows_per_second"] * one["busy"] * record["answering_seconds"] == pytest.approx(record["rows_per_second"] * 4.0)
    last = "in {}: 7.50 texts and 120 tokens a second"
    assert last.format("4.0 s, 3.0 s from the first batch to the last answer") in teams.teams_lines(record, ["pi"] * 3)
    assert last.format("4.0 s") in teams.teams_lines(record | {"answering_seconds": 4.02}, ["pi"] * 3)


def record_of(plan, latencies=(0.3, 0.1, 0.2), rows=(9, 8, 7)):
    facts = [{"host": f"pi{rank}", "threads": 4, "weight_bytes": 7 + rank, "peak_resident_bytes": 9 + rank} for rank in range(plan.ranks)]
    spent = records.Spent(*(np.arange(plan.ranks) + base for base in (0.123456789, 1, 2)))
    return records.run_record(SPEC, plan, records.Measured(latencies, rows, 9, facts, spent), {"plan": 0.5})


def test_the_record_of_a_run():
    plan = made().chosen.plan
    record = json.loads(json.dumps(record_of(plan)))
    assert (record["format"], record["format_version"], record["strategy"], record["plan_hash"]) == (
        "hepti-run",
        1,
        plan.strategy,
        plan.hash,
    )
    assert record["latency_seconds"] == {"median": 0.2, "p90": pytest.approx(0.28), "min": 0.1, "max": 0.3}
    assert record["startup_seconds"] == {"profile": 0.0, "plan": 0.5, "fetch": 0.0, "load": 0.0, "settle": 0.0, "warm_up": 0.0}
    assert (record["requests"], record["rows"], record["model"], record["family"]) == (9, 8, "tiny-bert", "bert")
    assert record["predicted_seconds"] is None, "of other rows than the plan is of"
    same = record_of(plan, rows=(97, 97, 97))
    assert same["predicted_seconds"] == pytest.approx(plan.predicted_seconds, rel=1e-5)
    assert [item["rank"] for item in record["ranks"]] == [0, 1, 2]
    assert record["ranks"][2] == {
        "rank": 2, "host": "pi2", "threads": 4, "emulated_board": None, "overruns": 0.0, "late": 0.0, "heads": plan.heads[2],
        "columns": plan.columns[2],
        "rows": plan.rows[2], "compute_seconds": 2.12346, "wire_seconds": 3.0, "wait_seconds": 4.0, "weight_bytes": 9,
        "peak_resident_bytes": 11,
    }  # fmt: skip


def test_texts_name_every_rank_and_candidate():
    plan = made().chosen.plan
    for text in (records.plan_lines(plan), records.rank_lines(made()), summary.run_lines(record_of(plan), made())):
        for rank in range(3):
            assert f"rank {rank} on pi{rank}" in text
    lines = records.decision_lines(made()).splitlines()
    assert "chosen" in lines[1] and all(" x  " in line for line in lines[2 : 2 + len(made().others)])
    assert records.decision_lines(replace(made(), others=made().others[::-1])).splitlines() == lines, "soonest first, however trusted"
    assert plan.hash in records.plan_lines(plan) and plan.strategy in records.plan_lines(plan)
    without = summary.run_lines(record_of(plan), None)
    assert " / -" in without and "9 texts by" in without


def test_numbers_of_a_long_job_are_no_powers_of_ten():
    text = {"completion_tokens": 4321000, "requests": 9, "seconds": 2500.0, "tokens_per_second": 1234.5, "ttft_seconds": 1000.0}
    said = generation.generation_lines(text | {"cut_off": 0, "all_tokens_per_second": 1728.4, "strategy": "single", "ranks": []})
    assert said.endswith("in 41 min 40 s by single: each has its first token after 16 min 40 s, its turn included, then 1,234 a "
                         "second, in the median; 1,728 a second of all together")  # fmt: skip
    assert "links of 400000 Mbit/s and 1000000 us" in inspection.board_lines(["pi4"], 400_000, 1e6)


@pytest.mark.parametrize("ends, said", [
    (["length"], "the answer was cut off; it"), (["length", "stop", "length"], "2 of 3 answers were cut off; they"),
    (["stop", "cancelled"], None),
])  # fmt: skip
@pytest.mark.parametrize("tokens", [1, 3])
def test_answers_that_ended_for_their_length_are_counted(ends, said, tokens):
    each = {"prompt": [1], "tokens": [2] * tokens, "submitted": 0.0, "first_token": 1.0, "ended": 2.0, "made": 0}
    answers = [SimpleNamespace(**each, finish_reason=end) for end in ends]
    record = generation.generation_record(SPEC, answers, 2.0)
    assert record["cut_off"] == ends.count("length")
    lines = generation.generation_lines(record | {"output": "a.jsonl", "errors": 2, "truncated": 0}).splitlines()
    assert lines[0] == "not answered, the place of each says why: 2" and lines[1].endswith("; answers in a.jsonl")
    mend = "may be longer by --max-tokens, or max_tokens where a line has its own, and --context"
    assert (f"{said} {mend}" in lines) if said else "cut off" not in "".join(lines)


def test_times_of_weights_that_are_paged_in_say_what_they_lack():
    """The price knows no storage."""
    chosen = made().chosen
    paged = replace(made(), chosen=replace(chosen, plan=replace(chosen.plan, weights_mode=("packed", "mapped", "packed"))))
    assert records.rank_lines(paged) == records.rank_lines(made()) + (
        "\nall times are of weights in memory; where mapped ones do not stay there, reading them from storage comes on top")


def test_a_summary_says_how_soon_and_where():
    plan = made().chosen.plan
    record = record_of(plan) | {"output": "there.jsonl"}
    assert record["seconds"] == pytest.approx(0.6) and record["requests_per_second"] == pytest.approx(15)
    assert record["rows_per_second"] == pytest.approx(24 / 0.6)
    *_, startup, last = summary.run_lines(record, None).splitlines()
    assert startup == "start-up 0.50 s (plan 0.50 s)"
    assert last == f"9 texts by {plan.strategy} in 0.60 s: 15.0 texts and 40.0 tokens a second; answers in there.jsonl"
    images = summary.throughput_line(record | {"family": "vit", "embedding": "patches", "requests": 1})
    assert f"1 image by {plan.strategy}" in images and "images and 40.0 patches a second" in images


@pytest.mark.parametrize("counts, is_active, expected", [
    ((0, 0), True, ["all", "all"]), ((12, 0), True, ["all", "0"]), ((5, 7), True, ["5", "7"]), ((0, 0), False, ["0", "0"]),
])  # fmt: skip
def test_a_rank_that_holds_all_says_so(counts, is_active, expected):
    assert [records.share_word(counts, rank, is_active) for rank in (0, 1)] == expected


@pytest.mark.parametrize("width", [None, 120, 80, 60, 40])
def test_tables_fit_the_screen(width):
    """Nothing is cut: what has no room beside the rest goes below it."""
    plan = made().chosen.plan
    record = record_of(plan)
    texts = [records.plan_lines(plan, width), records.rank_lines(made(), width), records.decision_lines(made(), width)]
    tables = [text for text in texts] + ["\n".join(summary.run_lines(record, made(), width).splitlines()[1:-3])]
    whole = [records.plan_lines(plan), records.rank_lines(made()), records.decision_lines(made())]
    for text, wide in zip(tables, whole):
        assert set(wide.split()) - {"candidate"} <= set(text.split())
    for text in tables:
        told = [line for line in text.splitlines() if not line.startswith(("plan ", "a batch of", "rank 2 on pi2 is left"))]
        assert width is None or max(map(len, told)) <= width, text


@pytest.mark.parametrize("width", [0, 1, 2, 5])
def test_a_terminal_that_is_hardly_one_gets_all_words(width):
    """`docker run -t` and consoles on a wire say that they have 0 columns: what is kept was not said there at all."""
    text = "a rank was lost: 2 of 3 answers are kept in a.journal, go on with: mpirun -n 2 python -m hepti_mpi run --resume"
    assert tables.folded(text, width).replace("\\", " ").split() == text.split()


def test_a_long_name_has_a_line_of_its_own():
    text = tables.table(("", "heads", "rows"), [("rank 0 on a-host-with-a-long-name", "7", "9")], 30)
    assert text.splitlines() == ["  heads  rows", "rank 0 on a-host-with-a-long-name", "      7     9"]


def test_an_input_is_cut_on_a_screen_only():
    record = {"input": "a text that is rather long " * 9, "embedding": [0.5] * 9}
    assert records.answer_line(record).startswith(repr(record["input"]))
    negative = record | {"embedding": [-0.25] * 384}
    for width in (60, 80):  # fewer numbers rather than a second line
        assert len(records.answer_line(negative, width)) <= width and records.answer_line(negative, width).endswith("...] (384 numbers)")
    assert len(records.answer_line(record, 100)) == 100 and "…': embedding [0.5" in records.answer_line(record, 100)


@pytest.mark.parametrize("text", [
    "今天天气很好，我们去公园散步吧" * 3, "👍" * 60, "well 👍 done " * 9, "👨\u200d👩\u200d👧" * 20, "e\u0301" * 90,
])  # fmt: skip
@pytest.mark.parametrize("width", [60, 80, 81])
def test_letters_that_take_two_columns_count_twice(text, width):
    record = {"id": "七", "input": text, "embedding": [-0.25] * 384}
    assert width - 1 <= tables.columns(records.answer_line(record, width)) <= width or text.startswith("👨")
    assert tables.columns(records.answer_line(record, width)) <= width
    lines = tables.folded(" ".join([text[:20]] * 9), width).splitlines()
    assert len(lines) > 1 and max(map(tables.columns, lines)) <= width and "\1" not in "".join(lines)
    shown = tables.table(("", "ms"), [(text[:9], "1"), ("abc", "22")]).splitlines()
    assert len(set(map(tables.columns, shown))) == 1 and all(line.endswith(("ms", " 1", "22")) for line in shown)


def test_what_is_left_out_is_told():
    decision = choose(SPEC, "hash", cluster((9, 9, 0.01)), Demand(97, shares=(1, 1, 0)))
    assert "left out" in records.plan_lines(decision.chosen.plan).splitlines()[-1]
    assert "rank 2 on pi2 is left out: no plan that was priced" in records.decision_lines(decision)


def test_ranks_of_which_the_same_is_to_be_said_have_one_line():
    assert doctest.testmod(reasons).failed == 0
    profile = cluster((9,) * 5, hosts=["a", "b", "b", "b", "c"])
    (line,) = reasons.left_out(choose(SPEC, "hash", profile, Demand(97, shares=(1, 0, 0, 0, 0))))
    assert line.startswith("ranks 1 to 3 on b and rank 4 on c are left out, each because ")
    assert reasons.named(range(9), "abcdefghi").endswith(", rank 5 on f and 3 more")


@pytest.mark.parametrize("record, expected", [
    ({"input": "a", "labels": [{"label": "cat", "score": 0.51234}, {"label": "dog", "score": 0.25}]}, "'a': cat 0.512, dog 0.250"),
    ({"input": "b", "masks": [{"position": 3, "tokens": [{"token": "mat", "score": 0.5}]}]}, "'b': [3] mat 0.500"),
    ({"input": "c", "masks": []}, "'c': "),
    ({"input": "d", "tokens": [{"token": "x", "label": "O"}, {"token": "y", "label": "P"}]}, "'d': x/O y/P"),
    ({"input": "e\nf", "embedding": [0.5] * 9}, r"'e\nf': embedding [0.5000, 0.5000, 0.5000, 0.5000, ...] (9 numbers)"),
])  # fmt: skip
def test_answer_line(record, expected):
    assert records.answer_line(record) == expected


@pytest.mark.parametrize("seconds, expected", [(None, "-"), (0, "0.0"), (0.00123, "1.2"), (9.9, "9900.0"), (12.3456, "12346")])
def test_milliseconds(seconds, expected):
    assert tables.milliseconds(seconds) == expected


@pytest.mark.parametrize("count, expected", [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (7 << 20, "7.0 MiB"), (9 << 30, "9.00 GiB")])
def test_size(count, expected):
    assert tables.size(count) == expected


def test_a_table_is_aligned():
    lines = tables.table(("", "n"), [("a", "7"), ("long", "1234")]).splitlines()
    assert lines == ["         n", "a        7", "long  1234"]
    assert tables.table(("x",), []) == "x"


def test_profile_and_inspection_lines(tmp_path):
    from hepti_mpi.reporting.inspection import profile_lines

    lines = profile_lines(cluster((9, 8))).splitlines()
    assert "rank 1 on pi1" in lines[3] and "1000" in lines[3] and "100" in lines[3]
    assert "rank 0 on pi0" in profile_lines(cluster((9,)))


def test_one_batch_has_no_median():
    """The time of a batch that is the only one is told once."""
    record = record_of(made().chosen.plan, (0.3,), (9,))
    record["batches"] = {"count": 1, "seconds": 0.3, "predicted_seconds": 0.2, "first_seconds": 0.3, "first_predicted_seconds": 0.2}
    lines = summary.run_lines(record, made())
    assert "one batch of 9 rows: 300.0 ms, predicted 200.0 ms (1.50 x)\n" in lines and "median" not in lines and "p90" not in lines
    record["batches"]["count"] = 2
    assert "median 300.0 ms" in summary.run_lines(record, made()) and "2 batches took 0.30 s in all" in summary.run_lines(record, made())


def test_a_plan_predicts_nothing_of_batches_of_other_rows():
    """What it predicts of its own was printed as of them: 2.6 times too soon."""
    plan = made().chosen.plan
    other = summary.run_lines(record_of(plan), None)
    assert "a batch of 8 rows: median 200.0 ms (the plan, which is of 97 rows, predicts none), p90" in other
    own = summary.run_lines(record_of(plan, rows=(97, 97, 97)), None)
    assert f"a batch of 97 rows: median 200.0 ms (predicted {tables.milliseconds(plan.predicted_seconds)}), p90" in own


@pytest.mark.parametrize("took, told", [(2.7e-3, True), (2.0e-3, False)])
def test_what_is_around_the_layers_of_a_short_batch_is_told(took, told):
    """A batch of ten rows took 2.7 ms, of which 2.0 were its layers, where 1.9 were predicted, and nothing said why."""
    decision = made()
    price = replace(decision.chosen.price, seconds=1.9e-3, compute=np.array([1.8e-3, 0, 0]), wire=0.0, wait=np.zeros(3))
    record = record_of(decision.chosen.plan, (took,) * 3) | {"predicted_seconds": 1.9e-3}
    record["ranks"][0] |= {"compute_seconds": 1.9e-3, "wire_seconds": 0.0, "wait_seconds": 0.0}
    decision = replace(decision, chosen=replace(decision.chosen, price=price))
    assert ("0.8 ms of a batch are around its layers, predicted 0.1: " in summary.run_lines(record, decision)) is told


@pytest.mark.parametrize("collectives, predicted, around", [("own", "0.0", "4.0"), ("mpi", "1500.0", "1.0")])
def test_time_of_links_that_work_while_ranks_compute_is_not_predicted_of_a_rank(collectives, predicted, around):
    """Beside 0.1 ms stood 46.9 predicted, of a batch of 41.2 ms; and 0.0 around its layers where 2.5 were meant."""
    decision = made()
    price = replace(decision.chosen.price, seconds=4.0, compute=np.array([1.4, 1.0, 1.0]), wire=1.5, wait=np.array([0.1, 0.5, 0.5]))
    plan = replace(decision.chosen.plan, collectives=collectives)
    decision = replace(decision, chosen=replace(decision.chosen, plan=plan, price=price))
    record = record_of(plan, (9.0,) * 3) | {"predicted_seconds": price.seconds if collectives == "mpi" else 5.5}
    record["ranks"][0] |= {"compute_seconds": 1.4, "wire_seconds": 0.05, "wait_seconds": 0.1}
    said = summary.run_lines(record, decision)
    assert re.search(rf" 50.0 / {predicted} +100.0 / 100.0 ", said), said
    assert f"ms of a batch are around its layers, predicted {float(around) * 1e3:.1f}" in said


def test_who_rests_is_not_waited_for_in_the_seconds_of_answering():
    """Under mpirun eight sentences seemed to take 0.03 s more than alone: ranks without a part look for their last order now and then."""
    plan = made().chosen.plan
    facts = [{"host": f"pi{rank}", "threads": 4, "weight_bytes": 7, "peak_resident_bytes": 9} for rank in range(3)]
    ready = SimpleNamespace(spec=SPEC, plan=plan, program=(), startup_seconds={}, wire_error=0.0)
    job = Together(None, ready, "auto", Demand(97))
    job.outcome = Outcome(8, 0.25, 0.5, [0.1], [97], seconds=np.zeros((3, 1, 0)), facts=facts)
    record = job.record(1.75, None)
    assert record["seconds"] == 1.0 and record["startup_seconds"]["warm_up"] == 0.25


@pytest.mark.parametrize("seconds, times, divided", [
    (0.3, 0, False), (0.09, 2, False), (0.013, 3, False), (0.0024, 10, False), (1e-5, 10, False), (0.0024, 3, True), (0.3, 0, True),
])  # fmt: skip
def test_short_batches_are_answered_before_they_count(seconds, times, divided):
    """A core that has rested takes 20 ms to be as fast as it was measured: ten rows took a fifth longer than predicted."""
    plan = SimpleNamespace(predicted_seconds=seconds, planned_rows=10, divided=divided)
    assert Course.warm_ups(SimpleNamespace(ready=SimpleNamespace(plan=plan), shapes=[(4, 6)])) == times


def test_a_job_that_was_told_of_a_terminal_prints_no_document(monkeypatch, capsys):
    """That of the lab did, over 25 lines."""
    for columns, printed in (("80", ""), ("", '{"format": "x"}\n')):
        monkeypatch.setenv("HEPTI_COLUMNS", columns)
        Screen().document({"format": "x"}, always=True)
        assert capsys.readouterr().out == printed
