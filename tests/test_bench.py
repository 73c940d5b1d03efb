import json
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from clusters import cluster

from hepti_mpi.cluster.profile import scaled
from hepti_mpi.commands import main, options
from hepti_mpi.commands.bench import MOST_ROWS, Formats, Sizes, check_sizes
from hepti_mpi.commands.benching import Choice
from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.random import CONFIGS, make_spec, random_model
from hepti_mpi.planning import methods
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.build import make_program
from hepti_mpi.tuning import bench as benches
from hepti_mpi.tuning import turns
from hepti_mpi.tuning.settle import Settled
from hepti_mpi.weights import writing


def test_sizes_of_requests():
    assert Sizes().convert("128", None, None) == ((128, None),)
    assert Sizes().convert("128, 64:6,384:6,128", None, None) == ((128, None), (64, 6), (384, 6))


@pytest.mark.parametrize("text", ["", "0", "-1", "12.5", "64:", "64:0", "64:x", ":6", "64:6:7", "128,,64", str(MOST_ROWS + 1)])
def test_no_sizes(text):
    with pytest.raises(click.BadParameter, match="is no number of rows from 1 to"):
        Sizes().convert(text, None, None)


def asked(*rows, phase="request"):
    return Choice(rows, 1, None, "", None, False, None, phase, 128, ())


def test_no_more_rows_and_layers_than_the_model_has():
    spec = make_spec("tiny-bert", CONFIGS["tiny-bert"])
    check_sizes(asked((spec.positions, spec.layers), (1, None)), spec)
    with pytest.raises(InputError, match=f"{spec.layers + 1} layers"):
        check_sizes(asked((1, spec.layers + 1)), spec)
    with pytest.raises(InputError, match=f"^tiny-bert has {spec.positions} positions, too few for a request of {spec.positions + 1} rows;"):
        check_sizes(asked((1, None), (spec.positions + 1, 1)), spec)


@pytest.mark.parametrize("words, why", [
    (["random:minilm", "--rows", "513"], "minilm has 512 positions, too few for a request of 513 rows; make --rows smaller"),
    (["random:tiny-llama", "--rows", "200", "--tokens", "57"],
     "tiny-llama has 256 positions, too few for a prompt of 200 rows and 57 tokens; make --rows or --tokens smaller"),
    (["random:minilm", "--tokens", "5"], "--tokens is for models that generate text, which minilm does not"),
])  # fmt: skip
def test_no_plan_for_more_rows_than_the_model_has(words, why):
    done = CliRunner().invoke(main.main, ["plan", "--boards", "pi5,pi4", "--weights", *words])
    assert isinstance(done.exception, InputError) and str(done.exception).startswith(why)


def test_rows_that_nobody_says_are_as_many_as_the_model_takes(monkeypatch):
    monkeypatch.setattr(options, "ROWS", 10_000)
    for model, told in (("random:minilm", 512), ("random:tiny-llama", "128 rows and 128 tokens")):
        done = CliRunner().invoke(main.main, ["plan", "--boards", "pi5,pi4", "--weights", model])
        assert done.exit_code == 0 and str(told) in done.output, done.output


@pytest.mark.parametrize(
    "words, why",
    [
        (["--output", "samples.jsonl"], "--output is for samples of requests"),
        (["--rows", "64:2"], "takes all layers"),
        (["--methods", "voltage,coedge"], "none of --methods divides a step of a text"),
    ],
)
def test_what_is_not_for_texts_is_refused_before_anything_starts(words, why):
    done = CliRunner().invoke(main.main, ["bench", "--phase", "decode", *words])
    assert done.exit_code == 2 and why in done.output


def test_texts_are_of_models_that_make_them_and_as_long_as_these_go():
    choice = asked((128, None), (1000, None), phase="decode")
    check_sizes(choice, make_spec("smollm2-135m", CONFIGS["smollm2-135m"]))
    with pytest.raises(InputError, match="is for models that generate text"):
        check_sizes(choice, make_spec("tiny-bert", CONFIGS["tiny-bert"]))
    with pytest.raises(InputError, match="256 positions, too few for a prompt of 1000 rows and 128 tokens"):
        check_sizes(choice, make_spec("tiny-llama", CONFIGS["tiny-llama"]))


class Alone:
    """A world of one rank, or what it is to rank 0 of many."""

    def from_root(self, value):
        return value


@pytest.mark.parametrize("times, right", [
    (10, [["hepti", "sequence", "tensor", "single"]]), (1.65, [["hepti", "sequence"], ["tensor", "single"]]),
    (1.3, [["hepti", "sequence"], ["tensor"], ["single"]]), (0.1, [["hepti"], ["sequence"], ["tensor"], ["single"]]),
])  # fmt: skip
def test_as_many_methods_answer_in_turns_as_memory_holds(times, right):
    """Fourteen of BERT-Large, on four boards of one machine, took all of its 24 GB and stood still."""
    spec, profile = random_model("tiny-bert").spec, cluster((9, 7, 8), mbit=1000)
    chosen = {name: methods.decide(name, spec, "hash", profile, Demand(26)) for name in ("sequence", "tensor", "single")}
    whole = max(chosen["sequence"].chosen.memory)
    plans = {name: (decision.chosen.plan, decision) for name, decision in chosen.items()}
    plans = {"hepti": plans["sequence"]} | plans  # what is divided alike is held once
    holds = {(0, name): benches.holds(0, plan, decision.chosen.memory) for name, (plan, decision) in plans.items()}
    found = turns.side_by_side(SimpleNamespace(world=Alone()), holds, [round(times * whole / turns.FILLED)] * 3)
    assert turns.told(found) == right


@pytest.mark.parametrize("filled", [turns.FILLED, 0])
def test_what_answered_is_given_up_and_compared_with_the_first_answer_of_all(filled, monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "FILLED", filled)
    monkeypatch.chdir(tmp_path)
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    held, run = [], benches.answer
    monkeypatch.setattr(benches, "answer", lambda machine, every, *more: (held.append(len(every)), run(machine, every, *more))[1])
    words = ["bench", "--weights", "tiny.h5", "--methods", "single,tensor,megatron", "--repeat", "1", "--threads", "1", "--json"]
    done = CliRunner().invoke(main.main, [*words, "--rows", "8"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert held == ([3] if filled else [1, 1, 1])
    assert document["turns"] == ([["single", "tensor", "megatron"]] if filled else [["single"], ["tensor"], ["megatron"]])
    assert ("memory does not hold all methods at once" in done.stderr) == (not filled)
    assert list(document["methods"]) == ["single", "tensor", "megatron"]


@pytest.mark.parametrize("filled", [turns.FILLED, 0])
def test_texts_are_written_by_as_many_methods_as_memory_holds(filled, monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "FILLED", filled)
    monkeypatch.chdir(tmp_path)
    writing.write(tmp_path / "tiny.h5", random_model("tiny-llama"))
    words = ["bench", "--phase", "decode", "--weights", "tiny.h5", "--methods", "single,tensor", "--repeat", "1", "--threads", "1"]
    done = CliRunner().invoke(main.main, [*words, "--rows", "8", "--tokens", "4", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["turns"] == ([["single", "tensor"]] if filled else [["single"], ["tensor"]])
    assert [one["largest_difference"] < 1e-5 for one in document["methods"].values()] == [True, True]


@pytest.mark.parametrize("factors", [(0.5, 1.0), (1.0, 0.5), (0.5, 3.0), (2.0, 1.0)])
def test_no_prediction_is_below_the_bound(factors, monkeypatch, tmp_path):
    """Ranks that were disturbed while they were measured, or while a plan was tried, answer sooner than by that."""
    monkeypatch.chdir(tmp_path)
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    learned = iter(factors)

    def settled(machine, spec, source_hash, segments, profile, demand, decision):
        plan, known = decision.chosen.plan, scaled(profile, [next(learned)])
        return Settled(plan, Pricer(spec, known, demand.rows, demand.attended).price(make_program(spec, plan), plan), known)

    monkeypatch.setattr(benches, "settle", settled)
    words = ["bench", "--weights", "tiny.h5", "--methods", "hepti,hepti-float16,megatron", "--repeat", "1", "--threads", "1", "--rows", "8"]
    done = CliRunner().invoke(main.main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    predicted = [one["predicted_seconds"] for one in document["methods"].values()]
    assert len(predicted) == 3 and 0 < document["perfect_seconds"] <= document["bound_seconds"] <= min(predicted) * 1.0001


def test_formats_are_named():
    assert Formats().convert("f32, q8,q4,q8", None, None) == ("f32", "q8", "q4")
    for text in ("", "q9", "f32,,q8", "auto"):
        with pytest.raises(click.BadParameter, match="is none of f32, f16, q8"):
            Formats().convert(text, None, None)


def test_a_table_says_what_it_is_of(monkeypatch, tmp_path):
    """One job may measure several sizes and formats; on a terminal no document below a table tells them apart."""
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    words = ["bench", "--weights", "tiny.h5", "--methods", "single", "--repeat", "1", "--threads", "1"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.main, [*words, "--rows", "8,4:1", "--formats", "f32,q8"])
    assert done.exit_code == 0, done.output
    told = [line for line in done.output.splitlines() if line.startswith("tiny")]
    assert told == [f"tiny-bert in {name}, {size}" for size in ("8 rows", "4 rows, the first 1 of 3 layers") for name in ("f32", "q8")]


def test_records_that_could_not_be_written_are_named_nowhere(monkeypatch, tmp_path):
    """What was measured is shown all the same."""
    def full(path, lines, failure):
        raise failure(f"{path} cannot be written: No space left on device")

    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hepti_mpi.documents.append_lines", full)
    words = ["bench", "--weights", "tiny.h5", "--methods", "single", "--repeat", "1", "--threads", "1", "--rows", "8"]
    done = CliRunner().invoke(main.main, [*words, "--output", "records.jsonl"])
    assert str(done.exception) == "records.jsonl cannot be written: No space left on device"
    assert json.loads(done.stdout.splitlines()[-1])["output"] is None and "records in" not in done.output
