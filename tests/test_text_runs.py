"""A run of texts that is cut off goes on in the middle of each text, alone and under a supervisor; and what is kept of it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from decoders import write_folder
from test_bad_input import SECONDS, launch_environment
from test_generation import END, Counting, finished

from hepti_mpi.commands.generate import _check
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.prompts import Prompt, array_prompts
from hepti_mpi.models.tasks.sampling import Chosen, Sampling
from hepti_mpi.serving.generation import Answer, Event, Generator
from hepti_mpi.serving.journal import Journal, journal_path, noted
from hepti_mpi.serving.outputs import write_finished
from hepti_mpi.serving.request import Question
from hepti_mpi.serving.sink import Filed, Spoken
from hepti_mpi.serving.written import Ahead, Written, finished_text, texts_head
from hepti_mpi.supervisor.kept import Kept
from hepti_mpi.supervisor.progress import State, read_state
from hepti_mpi.weights import writing
from hepti_mpi.weights.store import Store

MOST = 12


def letters(ids, more=False):
    return "".join(chr(97 + one % 26) for one in ids)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=9), Sampling(max_tokens=9, temperature=5.0, seed=3), Sampling(stop=("hi",))])
def test_an_answer_goes_on_where_it_was(sampling):
    whole = Generator(Counting(), [END], letters)
    right = whole.submit([3, 3, 4], sampling)
    list(finished(whole))
    for cut in range(len(right.tokens) + 1):
        generator = Generator(Counting(), [END], letters)
        answer = generator.submit([3, 3, 4], sampling, right.chosen[:cut])
        list(finished(generator))
        assert (answer.tokens, answer.text, answer.finish_reason) == (right.tokens, right.text, right.finish_reason)
        assert answer.made == cut and answer.prompt == right.prompt


def test_a_journal_keeps_beginnings(tmp_path):
    path = tmp_path / "a.jsonl.journal"
    first = Journal(path, {"texts": {}}, 3, False)
    first.add([], [], grown=[[0, [5]], [2, [7, -0.5, [[7, -0.5]]]]])
    first.add([2], [{"answer": {"input": "x"}}], grown=[[0, [6]], [2, [8]]])
    first.file.close()
    assert noted(path) == ([2], {0: [Chosen(5), Chosen(6)]})
    with pytest.raises(InputError, match="1 of 3 answers and the beginnings of 1 of a run"):
        Journal(path, {"texts": {}}, 3, False)
    again = Journal(path, {"texts": {}}, 3, True)
    assert again.begun == {0: [Chosen(5), Chosen(6)]} and list(again.finished) == [2]
    for wrong in ('{"grown": [[9, [5]]]}', '{"grown": [[0, ["x"]]]}', '{"grown": [0]}', '{"grown": [[0, [1, 2]]]}', '{"grown": 3}'):
        again.file.close()
        path.write_bytes(path.read_bytes().split(b'{"grown": [[9')[0])
        with open(path, "ab") as file:
            file.write(wrong.encode() + b"\n")
        with pytest.raises(InputError, match="is damaged"):
            Journal(path, {"texts": {}}, 3, True)
        path.write_bytes(path.read_bytes()[: -len(wrong) - 1])


def test_what_a_supervisor_hears_is_what_the_next_start_begins_with(tmp_path):
    kept = Kept(tmp_path / "p.json", tmp_path / "a.jsonl", False, print)
    kept.heard({"kind": "begin", "requests": 2, "head": {"texts": {"max_tokens": 4}}, "refused": []})
    kept.heard({"kind": "answers", "places": [], "finished": [], "seconds": 0.1, "rows": 2, "rows_left": 6, "grown": [[0, [5]], [1, [9]]]})
    kept.heard({"kind": "answers", "places": [1], "finished": [{"answer": {}}], "seconds": 0.1, "rows": 2, "rows_left": 1,
                "grown": [[0, [6]], [1, [8]]]})  # fmt: skip
    state = kept.state()
    assert state.finished == [1] and state.begun == {0: [Chosen(5), Chosen(6)]} and (kept.rows, kept.rows_left) == (2, 1)
    (tmp_path / "state.json").write_text(json.dumps(state.to_json()))
    assert read_state(tmp_path / "state.json") == state
    assert "1 of 2 answers and the beginnings of 1 are kept" in kept.interrupted()
    (tmp_path / "state.json").write_text(json.dumps(State(begun={0: [Chosen(5)]}).to_json()).replace("[5]", '["5"]'))
    with pytest.raises(InputError, match="damaged"):
        read_state(tmp_path / "state.json")


def test_how_much_is_left_to_be_written_goes_by_the_texts_that_have_ended():
    """Not by how many have: those that are written at once end at about the same time."""
    answers = [Answer([1], Sampling(max_tokens=most), None) for most in (100, 100, 40)]
    ahead = Ahead(answers)

    def grown(*places, ended=None):
        events = []
        for place in places:
            answers[place].tokens.append(7)
            events.append(Event(answers[place], Chosen(7), "", "stop" if place == ended else None))
        return events

    assert ahead.left(grown(0, 1, 2)) == 237
    assert [ahead.left(grown(0, 1, 2)) for _ in range(8)][-1] == 240 - 27
    assert ahead.left(grown(0, 1, 2, ended=2)) == 0 + 2  # two others of 10 tokens, as the one that has ended: each gets one at least
    assert ahead.left(grown(0, 1, ended=0)) == 1 and ahead.left(grown(1, ended=1)) == 0
    assert Ahead([]).left([]) == 0


def test_texts_on_a_screen_come_in_the_order_of_their_prompts():
    shown, errors = [], []
    screen = SimpleNamespace(is_read=True, texts=errors.extend, say_text=lambda asked, text, ended: shown.append((asked, text, ended)))
    sink = Spoken(screen, ["first", "second", "third"])
    prompts = [Prompt(place, "", {"input": name}) for place, name in enumerate(sink.asked)]
    sink.begin({}, 3, {1: finished_text(Prompt(1, "", {"input": "second"}, error="no"), None, 3, {})})

    def event(said, ended=()):
        sink.event(Written(0.1, [prompts[one] for one in ended], [{"answer": {"input": prompts[one].given}} for one in ended], [], said))

    event([(0, "a"), (2, "x")])
    event([(2, "y"), (0, "")], [2])
    assert shown == [("first", "a", False)]
    event([(0, "b")], [0])
    assert shown[1:] == [(None, "b", True), ("third", "xy", True)] and errors == [{"input": "second", "error": "no"}]
    assert (sink.write().inputs, sink.write().errors) == (3, 1)


def test_a_text_that_cannot_be_written_ends_a_strict_run(tmp_path):
    """It was noted as an error among the others, whatever --strict said; a journal that holds nothing stays nowhere."""
    answers = [{"answer": {"input": "a"}}, {"answer": {"input": "b", "error": "no"}, "error": "no"}]
    for first, kept in ((0, False), (1, True)):
        sink = Filed(Question(output=tmp_path / f"{first}.jsonl", strict=True), print)
        sink.begin({}, 3, {})
        sink.event(Written(0.1, [Prompt(0, "", {})] * first, answers[:first], [], [], True))
        with pytest.raises(InputError, match="^no$"):
            sink.event(Written(0.1, [Prompt(1, "", {}), Prompt(2, "", {})], answers, [], [], True))
        assert (tmp_path / f"{first}.jsonl.journal").exists() == kept
    assert Written(0.1, [], answers).finished == answers


@pytest.mark.parametrize("output, shown, told", [
    (None, False, False), (None, True, True), ("a.npz", False, False), ("a.npz", True, False), ("a.jsonl", False, True),
])  # fmt: skip
def test_log_probabilities_are_refused_where_they_would_be_told_nowhere(output, shown, told, monkeypatch):
    """The screen and .npz left them out without a word."""
    monkeypatch.setattr(SCREEN, "json", shown)
    asked = Question(output=output and Path(output)), SimpleNamespace(logits=False, logprobs=2)
    if told:
        return _check(*asked)
    with pytest.raises(InputError, match="--logprobs is for an --output that ends in .jsonl, or for --json"):
        _check(*asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("texts")
    writing.write(made / "tiny.h5", read_model(write_folder("llama", made)))
    mask = np.arange(20)[None, :] < np.array([5, 20, 1])[:, None]
    np.savez(made / "in.npz", input_ids=np.random.default_rng(1).integers(3, 131, mask.shape) * mask, attention_mask=mask.astype(int))
    return made


def run(folder, output, *more):
    words = ["run", "--weights", "tiny.h5", "--input", "in.npz", "--max-tokens", MOST, "--threads", 1, "--output", output, *more]
    command = [sys.executable, "-m", "hepti_mpi", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=launch_environment(), capture_output=True, text=True, timeout=SECONDS)


def test_a_run_goes_on_in_the_middle_of_its_texts(folder):
    done = run(folder, "whole.npz", "--logits")
    assert done.returncode == 0, done.stderr
    with np.load(folder / "whole.npz") as found:
        tokens, logits = found["tokens"], found["logits"]
    assert tokens.shape == (3, MOST) and logits.shape == (3, 20, 131)
    assert not logits[0, 5:].any() and (logits[1, -1].argmax(), logits[2, 0].argmax()) == (tokens[1, 0], tokens[2, 0])
    with Store(folder / "tiny.h5") as store:
        prompts = array_prompts(store.spec, folder / "in.npz")
        head = texts_head(store, prompts, Sampling(max_tokens=MOST), "float32", store.spec.positions)
    for output in ("cut.npz", "cut.jsonl"):
        path = journal_path(folder / output)
        journal = Journal(path, head, 3, False)
        journal.add([], [], grown=[[row, [int(token)]] for row in (0, 1) for token in tokens[row, : 4 + row]])
        journal.file.close()
        done = run(folder, output)
        assert done.returncode == 2 and "0 of 3 answers and the beginnings of 2" in done.stderr
        if output == "cut.npz":
            others = {"--cache-format float32, this run with float16": ("--cache-format", "float16"), "this run's 40": ("--context", 40),
                      "temperature 0.0, now temperature 0.5": ("--temperature", 0.5),
                      "--tolerance 0.0, this run with 0.1": ("--tolerance", 0.1)}  # fmt: skip
            for words, more in others.items():
                done = run(folder, output, "--resume", *more)
                assert done.returncode == 2 and "is of another run" in done.stderr and words in done.stderr, done.stderr
        done = run(folder, output, "--resume", "--json")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout.splitlines()[-1])
        assert made["completion_tokens"] == sum(tokens[0] >= 0) + sum(tokens[1] >= 0) + sum(tokens[2] >= 0) - 9 and not path.exists()
    with np.load(folder / "cut.npz") as found:
        np.testing.assert_array_equal(found["tokens"], tokens)
    lines = [json.loads(line) for line in (folder / "cut.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [row[row >= 0].tolist() for row in tokens]
    assert {*lines[0]} == {"input", "tokens", "finish_reason", "prompt_tokens", "completion_tokens"} and lines[1]["prompt_tokens"] == 20


def test_a_lone_rank_has_no_wire_whatever_is_tolerated(folder):
    done = run(folder, "tolerant.jsonl", "--tolerance", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["wire"] == "float32"
    exact = run(folder, "exact.jsonl")
    assert exact.returncode == 0 and (folder / "tolerant.jsonl").read_text() == (folder / "exact.jsonl").read_text()


def test_arrays_with_errors(tmp_path):
    prompt = Prompt(0, "", {"input": "x"}, [4, 5], keep=np.array([1, 3]), width=5)
    answer = SimpleNamespace(streamed=None, tokens=[7], finish_reason="stop", prompt=[4, 5], sampling=Sampling(), error=None)
    kept = [finished_text(prompt, answer, 3, {0: np.ones((2, 6), np.float32)})]
    kept.append(finished_text(Prompt(1, "", {"input": "y", "id": "b"}, error="bad"), None, 3, {}))
    write_finished(tmp_path / "o.npz", kept)
    with np.load(tmp_path / "o.npz") as found:
        assert found["tokens"].tolist() == [[7, -1, -1], [-1, -1, -1]] and found["errors"].tolist() == ["", "bad"]
        assert found["logits"][0, :, 0].tolist() == [0, 1, 0, 1, 0] and found["id"].tolist() == ["", "b"]
        assert np.isnan(found["logits"][1]).all()  # 0 is what a position without a token has
