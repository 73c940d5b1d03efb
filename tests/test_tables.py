"""The tables of what the lab measured, of documents that are made up: in the boards' own time, and no word where something does not fit."""

import doctest
import json
import sys

import pytest
from lab import clusters, prices, tables
from lab import lab as labs
from made_benches import bench, write

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")

MADE = {"date": "2026-11-29 15:11 UTC", "machine": "pi5-1, a processor, 2 cores",
        "versions": {"onnxruntime": "1.32.0", "emulation": "5,7,12,18"}}  # fmt: skip


def document(cluster="mixed4", **changes):
    """The last line of a bench of hepti and single, with what the program tells beside what the pictures need."""
    last = bench(cluster, ("hepti", "hepti-float16", "single"), layers=3)[-1] | MADE | changes
    for method in last["methods"].values():
        method |= {"late": 0.002, "overruns": 0.1, "nearness": 0.5}
    return last


def told(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["tables", *map(str, words)])
    code = tables.main()
    out = capsys.readouterr()
    return code, out.out, out.err


def folder_of(path, *documents):
    for number, one in enumerate(documents):
        write(path / f"{number}.json", [one])
    return path


def test_examples():
    assert all(doctest.testmod(one).failed == 0 for one in (tables, clusters, labs))


def test_tables_say_when_on_what_and_in_which_motion(tmp_path, monkeypatch, capsys):
    one = document(rows=64)
    code, out, _ = told(monkeypatch, capsys, folder_of(tmp_path, one))
    assert told(monkeypatch, capsys, "--slow", "mixed4=2", tmp_path)[1] == out
    assert code == 0 and "2026-11-29 15:11 UTC; a processor, 2 cores; onnxruntime 1.32.0." in out and "divided: mixed4 2." in out
    median = one["methods"]["hepti"]["median_seconds"]
    latencies = next(line for line in out.splitlines() if line.startswith("| mixed4 | bert-large | 64 | 400 |"))
    assert f"| {500 * median:.0f} |" in latencies, "divided by the motion"


def test_a_motion_that_is_said_is_the_one_that_boards_were_in(tmp_path, monkeypatch, capsys):
    code, out, err = told(monkeypatch, capsys, "--slow", "1.6", folder_of(tmp_path, document()))
    assert code == 2 and not out and "mixed4 bert-large 128 was measured in motion 2 times as slow, not 1.6" in err
    for versions in ({}, {"emulation": "1,2"}, {"emulation": "5,7,12,9"}):  # real boards, others, some that changed
        assert tables.motion(document(versions=versions), {}) == 1 and tables.motion(document(versions=versions), {"": 3}) == 3
    assert tables.motion(document(cluster="mixed4") | {"cluster": "mixed4-430M"}, {}) == 2
    own = {"cluster": "pi54", "versions": {"emulation": "pi5*5 300us,pi5*5 300us,pi4*5 300us,pi4*5 300us"}}
    assert tables.motion(document() | own, {}) == 5


def test_a_bound_is_of_the_wire_of_its_method_and_none_is_above_what_was_measured(tmp_path, monkeypatch, capsys):
    one = document()
    one["methods"]["hepti-float16"] |= {"nearness": 1.02, "late": 0.03}
    _, out, _ = told(monkeypatch, capsys, folder_of(tmp_path, one))
    assert "Sooner than the bound, which is none then: hepti-float16 on mixed4 bert-large 128." in out
    bound = 500 * (one["methods"]["hepti"]["median_seconds"] - one["methods"]["hepti"]["above_bound"]["seconds"])
    assert f"| mixed4 | bert-large | 128 | hepti | {bound:.0f} | 0.500 |" in out and "| hepti-float16 | 3.0 % | 10.0 % |" in out
    assert "Sooner" not in told(monkeypatch, capsys, folder_of(tmp_path, document()))[1]


def test_a_bench_of_float16_alone_has_no_other_bound(tmp_path, monkeypatch, capsys):
    one = document()
    del one["bound_seconds"]
    assert told(monkeypatch, capsys, folder_of(tmp_path, one))[0] == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "hepti-bench"', "\xff"])
def test_what_is_cut_off_is_said(text, tmp_path, monkeypatch, capsys):
    for name, words in (("a.json", ()), ("a.jsonl", ("--records",))):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        code, _, err = told(monkeypatch, capsys, *words, tmp_path)
        assert code == 2 and err.startswith("error: ") and f"{name} " in err and err.count("\n") == 1


def test_what_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    assert told(monkeypatch, capsys, tmp_path)[0] == 2
    assert told(monkeypatch, capsys, "--records", tmp_path)[0] == 2


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "mixed4=", "even4=0.5"])
def test_no_motion(said):
    with pytest.raises(ValueError):
        tables.motions(said)


def test_only_the_same_bench_is_compared_with_itself(tmp_path, monkeypatch, capsys):
    code, out, _ = told(monkeypatch, capsys, "--repeated", folder_of(tmp_path, document(), document()))
    assert code == 0 and "| hepti |" in out and "0.0 %" in out
    for changes in ({"rows": 64}, {"cluster": "even4"}, {"model": "vit-large"}, {"methods": {"single": document()["methods"]["single"]}}):
        code, out, err = told(monkeypatch, capsys, "--repeated", folder_of(tmp_path, document(), document() | changes))
        assert code == 2 and f"they differ in {next(iter(changes))}" in err and not out


def test_records_in_the_boards_own_time(tmp_path, monkeypatch, capsys):
    lines = [*bench("mixed4", ("hepti",), layers=3), *bench("wifi2", ("hepti",), layers=3)]
    file = write(tmp_path / "records.jsonl", lines)
    lines[len(lines) // 2 - 1] |= MADE
    write(file, lines)
    _, out, _ = told(monkeypatch, capsys, "--records", tmp_path)
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == len(lines)
    assert found[len(lines) // 2 - 1]["versions"]["slow motion"] == "2, taken out of all times" and "versions" not in found[-1]
    for place, (one, was) in enumerate(zip(found, lines)):
        slow = 2 if place < len(lines) / 2 else 1
        if was.get("kind") == "request":
            assert one["seconds"] == was["seconds"] / slow and one["wire_seconds"][0] == was["wire_seconds"][0] / slow
        if was.get("kind") == "timeline":
            events, before = (line["ranks"][0]["events"][0] for line in (one, was))
            assert events[:2] == before[:2] and events[3] == before[3] / slow
            assert [float(rank["board"]) for rank in one["ranks"]] == [float(rank["board"]) / slow for rank in was["ranks"]]
    write(file, lines[:-1])
    code, _, err = told(monkeypatch, capsys, "--records", tmp_path)
    assert code == 2 and "ends within a bench" in err


def test_prices_are_of_the_boards_too():
    (case, _) = prices.cases(clusters.cluster_named("pi4x4"), "minilm", "f32", 64, False)
    cells = prices.line(case).split(" | ")
    times = (case.chosen.price.seconds, case.bound.seconds, case.bound.perfect)
    assert case.slow == 2 and cells[4:7] == [f"{500 * seconds:.0f}" for seconds in times]


@pytest.mark.parametrize("words, said", [
    (["--clusters", "pi9"], "no cluster pi9"), (["--models", "bert"], "no random model 'bert'"), (["--rows", "few"], "invalid"),
    (["--models", "vit-large", "--rows", "384"], "no request of that many rows is taken by these models"),
])  # fmt: skip
def test_no_prices(words, said, capsys):
    with pytest.raises(SystemExit):
        prices.main(words)
    assert said in capsys.readouterr().err
