"""Answers under way: slots, chunks, ends."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from decoders import write_folder

from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.checkpoints.generation import chat_files, writing_options
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.tokenizing import build_tokenizer
from hepti_mpi.models.inputs.chat import ChatTemplate
from hepti_mpi.models.tasks.sampling import Sampling, Scores
from hepti_mpi.serving.chunks import CHUNK, rows_taken_in
from hepti_mpi.serving.generation import Generator

VOCABULARY, END = 50, 0


class Counting:
    """Stands in for ranks: what follows a token is the next number, by what is in the slot."""

    def __init__(self, slots=2, positions=300):
        self.slots, self.positions, self.cache, self.steps = slots, positions, {}, []

    def scores(self, slot):
        logits = np.zeros(VOCABULARY, np.float32)
        logits[(self.cache[slot][-1] + 1) % VOCABULARY] = 1
        return Scores.of_all(logits)

    def prefill(self, slot, ids, first, candidates):
        self.steps.append(("prefill", slot, len(ids)))
        self.cache[slot] = [*self.cache.get(slot, [])[:first], *ids]
        assert first + len(ids) == len(self.cache[slot])
        return None if candidates is None else self.scores(slot)

    def check(self, slot, ids, first, candidates):
        self.steps.append(("check", slot, len(ids)))
        found = []
        self.cache[slot] = self.cache[slot][:first]
        for token in ids:
            self.cache[slot].append(token)
            found.append(self.scores(slot))
        return found

    def decode(self, rows, candidates):
        self.steps.append(("decode", [slot for slot, _, _ in rows]))
        for slot, token, place in rows:
            assert place <= len(self.cache[slot])  # behind it are guesses that were wrong
            self.cache[slot] = self.cache[slot][:place]
            self.cache[slot].append(token)
        return [self.scores(slot) for slot, _, _ in rows]

    def copy(self, source, slot, first, stop):
        self.steps.append(("copy", source, slot, first, stop))
        assert source != slot and stop <= len(self.cache[source])
        own = self.cache.setdefault(slot, [])
        assert first <= len(own)
        own[first:] = self.cache[source][first:stop]


def finished(generator):
    while generator.busy:
        yield from generator.step()


def test_many_answers_on_two_slots():
    generator = Generator(Counting(), [END], lambda ids, more=False: "".join(chr(97 + one % 26) for one in ids))
    answers = [generator.submit([start], Sampling(max_tokens=most)) for start, most in ((3, 4), (47, 9), (10, 1), (20, 2))]
    events = list(finished(generator))
    assert [answer.tokens for answer in answers] == [[4, 5, 6, 7], [48, 49, 0], [11], [21, 22]]
    assert [answer.finish_reason for answer in answers] == ["length", "stop", "length", "length"]
    assert [answer.text for answer in answers] == ["efgh", "wx", "l", "vw"]
    for answer in answers:
        assert "".join(event.text for event in events if event.answer is answer) == answer.text


class Spoilt(Counting):
    """One whose numbers became too large behind some token."""

    def scores(self, slot):
        found = super().scores(slot)
        return Scores.of_all(found.logits * np.nan) if self.cache[slot][-1] == 12 else found


@pytest.mark.parametrize("others", [[], [30]])
def test_logits_that_are_no_numbers_end_that_answer_only(others):
    generator = Generator(Spoilt(), [END])
    bad, *good = [generator.submit([start], Sampling(max_tokens=5)) for start in (10, *others, 20)]
    list(finished(generator))
    assert (bad.tokens, bad.finish_reason, bad.error) == ([11, 12], "error", "the model gave logits that are not finite")
    assert [answer.tokens for answer in good] == [list(range(start + 1, start + 6)) for start in (*others, 20)]


def test_long_prompts_come_in_chunks_while_others_grow():
    stepper = Counting()
    generator = Generator(stepper, [END])
    first = generator.submit([5], Sampling(max_tokens=10))
    second = generator.submit(list(range(40)) * 7, Sampling(max_tokens=2))
    list(finished(generator))
    chunks = [step[2] for step in stepper.steps if step[0] == "prefill" and step[1] == 1]
    assert chunks == [CHUNK, CHUNK, 280 - 2 * CHUNK] and len(first.tokens) == 10 and second.tokens == [40, 41]
    assert stepper.steps[1:4] == [("prefill", 1, CHUNK), ("decode", [0]), ("prefill", 1, CHUNK)]


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_that_for_short_ones():
    generator = Generator(Counting(positions=10 * CHUNK), [END])
    long = generator.submit([1] * (9 * CHUNK) + [7], Sampling(max_tokens=1))
    generator.step()
    short = generator.submit([5, 6], Sampling(max_tokens=1))
    for _ in range(2):
        generator.step()
    assert short.tokens == [7] and not long.tokens
    steps = 0
    while long.finish_reason is None:
        generator.submit([5], Sampling(max_tokens=1))
        generator.step()
        steps += 1
    assert long.tokens == [8] and steps < 20


def test_stop_texts():
    generator = Generator(Counting(), [END], lambda ids, more=False: "".join(chr(97 + one % 26) for one in ids))
    answer = generator.submit([0], Sampling(stop=("de",)))
    list(finished(generator))
    assert (answer.text, answer.finish_reason, answer.tokens) == ("bc", "stop", [1, 2, 3, 4])


def test_room_ends_an_answer():
    generator = Generator(Counting(positions=8), [END])
    answer = generator.submit([1, 2, 3, 4, 5], Sampling(max_tokens=50))
    list(finished(generator))
    assert answer.finish_reason == "length" and len(answer.tokens) == 3


def test_a_talk_that_goes_on_keeps_its_rows():
    stepper = Counting()
    generator = Generator(stepper, [END])
    first = generator.submit([9, 8, 7], Sampling(max_tokens=3))
    list(finished(generator))
    talk = [*first.prompt, *first.tokens, 30]
    second = generator.submit(talk, Sampling(max_tokens=2))
    list(finished(generator))
    assert stepper.steps[-2] == ("prefill", 0, 2) and stepper.cache[0] == [*talk, 31] and second.tokens == [31, 32]
    generator.submit(talk, Sampling(max_tokens=1))
    list(finished(generator))
    assert stepper.steps[-1] == ("prefill", 0, 2)  # by the kernel that scored it before


@pytest.mark.parametrize("length", [1, 7, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_a_prompt_is_asked_again_by_the_chunk_that_it_was_scored_by(length):
    stepper = Counting(slots=1)
    generator = Generator(stepper, [END])
    scored = []
    for _ in range(3):
        generator.submit([7] * length, Sampling(max_tokens=3))
        list(finished(generator))
        prefills = [step for step in stepper.steps if step[0] == "prefill"]
        scored.append(prefills[-1])
    assert scored == [("prefill", 0, (length - 1) % CHUNK + 1)] * 3
    assert len(prefills) == (length - 1) // CHUNK + 3  # whole chunks before it are not taken in again


def prefills(stepper):
    return [step[2] for step in stepper.steps if step[0] == "prefill"]


def copies(stepper):
    return [step[1:] for step in stepper.steps if step[0] == "copy"]


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_what_prompts_begin_with_alike_is_taken_in_once(slots):
    """By whole chunks, which each would compute so, whichever of them comes first; with one slot it is still there."""
    stepper, common = Counting(slots, 8 * CHUNK), [1, 2, 3, 4] * (3 * CHUNK // 4)
    generator = Generator(stepper, [END])
    prompts = [[*common, *[40] * (slots % 2), start, start + 1] for start in range(5, 12)] + [[*common[: 2 * CHUNK - 3], 30]]
    answers = [generator.submit(prompt, Sampling(max_tokens=3)) for prompt in prompts]
    list(finished(generator))
    assert [one.tokens for one in answers] == [[prompt[-1] + more for more in (1, 2, 3)] for prompt in prompts]
    assert prefills(stepper).count(CHUNK) == 3, "of 19 whole chunks"
    assert all(not (stop - first) % CHUNK for _, _, first, stop in copies(stepper)) and bool(copies(stepper)) == (slots > 1)


def test_rows_that_were_not_taken_in_by_chunks_counted_from_0_are_nobody_elses():
    stepper = Counting(3, 8 * CHUNK)
    generator = Generator(stepper, [END])
    first = generator.submit([7] * 10, Sampling(max_tokens=4))
    list(finished(generator))
    talk = [*first.prompt, *first.tokens, *[9] * (3 * CHUNK)]  # goes on behind an answer: its chunks are counted from there
    going = generator.submit(talk, Sampling(max_tokens=20))
    while not going.tokens:
        generator.step()
    generator.submit([*talk, 5], Sampling(max_tokens=1))
    list(finished(generator))
    assert not copies(stepper)


@pytest.mark.parametrize("length", [1, 36, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_several_answers_to_one_prompt_have_its_scores(length):
    stepper = Counting(8, 8 * CHUNK)
    generator = Generator(stepper, [END])
    prompt = [7] * (length - 1) + [20]
    answers = [generator.submit(prompt, Sampling(max_tokens=most)) for most in (1, 5, 5, 2)]
    other = generator.submit(prompt, Sampling(max_tokens=3, temperature=0.01, seed=1))  # which chooses from other scores
    list(finished(generator))
    assert [one.tokens for one in answers] == [list(range(21, 21 + most)) for most in (1, 5, 5, 2)]
    assert other.tokens == [21, 22, 23] and other.sampling.candidates != answers[0].sampling.candidates
    assert len(prefills(stepper)) == -(-length // CHUNK) + 1


@pytest.mark.parametrize("length", [1, 36, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_an_answer_that_comes_later_has_the_scores_of_one_to_the_same_prompt_that_grows(length):
    """As several do that a client asks for at once, where the first has begun before the others are there or there are not enough slots."""
    stepper = Counting(2, 8 * CHUNK)
    generator = Generator(stepper, [END])
    prompt = [7] * (length - 1) + [2]
    first = generator.submit(prompt, Sampling(max_tokens=30))
    while not first.tokens:
        generator.step()
    later = [generator.submit(prompt, Sampling(max_tokens=most)) for most in (1, 4, 4)]
    other = generator.submit(prompt, Sampling(max_tokens=2, temperature=0.01, seed=1))  # which chooses from other scores
    list(finished(generator))
    assert [one.tokens for one in (first, *later, other)] == [[*range(3, 3 + most)] for most in (30, 1, 4, 4, 2)]
    assert len(prefills(stepper)) == -(-length // CHUNK) + 1 and all(slot != source for source, slot, *_ in copies(stepper))


def test_chunks_that_prompts_begin_with_alike_are_priced_once():
    common = [*range(2 * CHUNK + 5)]
    assert rows_taken_in([common]) == rows_taken_in([common, common]) == len(common)
    assert rows_taken_in([common, [*common, 9], common[1:], common[: CHUNK + 3]]) == len(common) + 6 + len(common) - 1 + 3
    stepper = Counting(3, 8 * CHUNK)
    generator = Generator(stepper, [END])
    prompts = [[*common, place % 2, 9] for place in range(6)]
    for prompt in prompts:
        generator.submit(prompt, Sampling(max_tokens=2))
    list(finished(generator))
    assert rows_taken_in(prompts) <= sum(prefills(stepper))


def test_who_had_the_beginning_may_be_gone():
    stepper, common = Counting(3, 8 * CHUNK), [1, 2] * CHUNK
    generator = Generator(stepper, [END])
    first, second, third = (generator.submit([*common, start], Sampling(max_tokens=3)) for start in (5, 15, 25))
    generator.step()
    generator.cancel(first)
    generator.step()
    generator.cancel(second)
    list(finished(generator))
    assert third.tokens == [26, 27, 28] and prefills(stepper) == [CHUNK, CHUNK, 1]


def test_cancelled():
    generator = Generator(Counting(1), [END])
    first, second = (generator.submit([1], Sampling(max_tokens=40)) for _ in range(2))
    generator.step()
    generator.cancel(first)
    generator.step()
    generator.cancel(second)
    assert not generator.busy and [one.finish_reason for one in (first, second)] == ["cancelled"] * 2


def test_refusals():
    generator = Generator(Counting(positions=8), [END])
    for prompt, sampling in (([], Sampling()), (range(8), Sampling()), ([1], Sampling(stop=("x",)))):
        with pytest.raises(InputError):
            generator.submit(prompt, sampling)


def test_what_the_model_says_of_repetition_counts_where_nobody_asks_for_another():
    class Same(Counting):  # the same token is the likeliest always
        def scores(self, slot):
            return Scores.of_all((3 * (np.arange(VOCABULARY) == 7) + 2 * (np.arange(VOCABULARY) == 9)).astype(np.float32))

    for penalty, asked, tokens in ((1.0, None, [7] * 4), (2.0, None, [9, 7, 7, 7]), (2.0, 1.0, [7] * 4), (1.0, 2.0, [9, 7, 7, 7])):
        generator = Generator(Same(), [END], penalty=penalty)
        answer = generator.submit([7], Sampling(max_tokens=4, repetition_penalty=asked))
        list(finished(generator))
        assert answer.tokens == tokens


@pytest.mark.parametrize("said, options", [
    ({}, {"ends": []}), ({"eos_token_id": 2}, {"ends": [2]}),
    ({"eos_token_id": [3, 4], "temperature": 0.6, "do_sample": True}, {"ends": [3, 4]}),
    ({"repetition_penalty": 1.05, "top_k": 20}, {"ends": [], "repetition_penalty": 1.05}), ({"repetition_penalty": 1.0}, {"ends": []}),
    ({"num_beams": 1, "typical_p": 1.0, "suppress_tokens": None, "cache_implementation": "hybrid"}, {"ends": []}),
    ({"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"ends": []}),  # which transformers passes over
    ({"odd": None}, {"ends": []}),  # says nothing
])  # fmt: skip
def test_what_a_folder_says_of_generation(said, options, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert writing_options(tmp_path, {"eos_token_id": 2}) == options


@pytest.mark.parametrize("said, words", [
    ({"num_beams": 4}, "num_beams is 4, which is not supported: beams are not searched"),
    ({"no_repeat_ngram_size": 3}, "the choice of tokens does not know it"), ({"suppress_tokens": [5]}, "suppress_tokens is"),
    ({"forced_eos_token_id": 2}, "forced_eos_token_id is 2"), ({"min_new_tokens": 5}, "min_new_tokens is 5"),
    ({"stop_strings": ["."]}, "stop_strings is"), ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a number from 0.01"),
    ({"num_return_sequences": 2}, "a prompt gets one answer"), ({"odd": 1}, "'odd' is in no list of what this file may say"),
    ({"cache_implementation": "quantized"}, "cache_implementation is 'quantized', which is not supported: keys and values"),
])  # fmt: skip
def test_what_changes_answers_and_is_not_done_is_refused(said, words, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=f"^generation_config.json: .*{re.escape(words)}"):
        writing_options(tmp_path, {})


@pytest.mark.parametrize("said, table, text", [  # as apply_chat_template of transformers 5.23 does
    ({"sep_token": "[SEP]", "cls_token": {"content": "[CLS]", "__type": "AddedToken"}}, {}, "[SEP][CLS]"),
    ({"image_token": "[MASK]"}, {}, "[MASK]"), ({}, {"bos_token": "[UNK]"}, "[UNK]"), ({"bos_token": "[PAD]"}, {}, "[PAD]"),
])  # fmt: skip
def test_a_chat_template_may_name_every_special_token(said, table, text, tmp_path):
    golden = Path(__file__).parent / "golden" / "bert_mlm"
    template = "{{ bos_token }}{{ sep_token }}{{ cls_token }}{{ image_token }}{{ messages[0]['content'] }}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template} | said
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    files = {"tokenizer.json": (golden / "tokenizer.json").read_bytes(), "tokenizer_config.json": json.dumps(config).encode()}
    built = build_tokenizer(files | {"special_tokens_map.json": json.dumps(table).encode()}, None)
    found = ChatTemplate.of(built.files | chat_files(tmp_path, built))
    assert found is not None and found.text([{"role": "user", "content": " hello"}]) == text + " hello"


@pytest.mark.parametrize("name, content, words", [  # AutoTokenizer of transformers 5.23 refuses them too
    ("tokenizer_config.json", {"chat_template": ["{{ messages }}"]}, "expected a name and a template for each"),
    ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "expected a name and a template for each"),
    ("chat_template.jinja", "{{ messages }}".encode("utf-16"), "chat_template.jinja is not in UTF-8"),
    ("additional_chat_templates/tool_use.jinja", b"\xff", "tool_use.jinja is not in UTF-8"),
])  # fmt: skip
def test_chat_templates_that_are_none(name, content, words, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ModelError, match=words):
        chat_files(tmp_path, build_tokenizer({}, None))


@pytest.mark.parametrize("said, ends", [({}, []), ({"eos_token_id": None}, []), ({"eos_token_id": 2}, [2])])
def test_an_end_that_no_file_says_is_none(said, ends, tmp_path):
    """As generate() of transformers 5.23, which reads config.json itself: what the class of a Llama says of eos_token_id does not count."""
    folder = write_folder("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config | said))
    assert read_model(folder).spec.options["ends"] == ends


def test_null_is_refused_where_it_means_no(tmp_path):
    """As transformers 5.23 takes is_causal: null to mean no, but of a key that nobody reads null says nothing."""
    folder = write_folder("mistral", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": True, "mystery": None, "num_experts": None}))
    assert read_model(folder).spec.head == "next-token"
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": None}))
    with pytest.raises(ModelError, match="is_causal is None, which is not supported"):
        read_model(folder)


def test_without_the_file_config_json_counts(tmp_path):
    config = {"eos_token_id": 2, "repetition_penalty": 1.3, "hidden_size": 8}
    assert writing_options(tmp_path, config) == {"ends": [2], "repetition_penalty": 1.3}
    with pytest.raises(ModelError, match="^config.json: suppress_tokens is "):
        writing_options(tmp_path, config | {"suppress_tokens": [5]})
    (tmp_path / "generation_config.json").write_text("{}")
    assert writing_options(tmp_path, config | {"suppress_tokens": [5]}) == {"ends": []}  # where there is one, it alone counts


@pytest.mark.parametrize("more, words", [({"dim": 12}, "multiple of 8"), ({"causal": False}, "behind them")])
def test_attention_that_cannot_go_on(more, words):
    from hepti_mpi.engine.caching import check_cached
    from hepti_mpi.models.blocks import Attention

    check_cached(Attention(48, 6, 8, causal=True))
    with pytest.raises(ModelError, match=words):
        check_cached(Attention(48, 6, **{"dim": 8, "causal": True} | more))
