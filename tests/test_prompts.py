"""Prompts as they are given: lines, objects, talks and arrays."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from test_gguf import LETTERS, tokens

from hepti_mpi.commands.generate import _prompts
from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.prompts import check_met, check_room, read_prompts
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.serving import asking
from hepti_mpi.serving.http.fields import Fields
from hepti_mpi.serving.http.generation import chat, completion

from decoders import write_folder  # isort: skip

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return read_model(write_folder("llama", tmp_path_factory.mktemp("decoders"))).spec


TEMPLATE = b"{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}<|im_end|>"
FILES = tokens().files | {"chat_template.jinja": TEMPLATE}


def letters(prompt):
    return [LETTERS[one] for one in prompt.ids]


def read(spec, tmp_path, name, content, **more):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return read_prompts(spec, FILES, str(path), **more)


def test_lines(spec, tmp_path):
    found = read(spec, tmp_path, "x.txt", "ab ab\n\nc\n")
    assert [letters(one) for one in found] == [["ab", "Ġab"], [], ["c"]]
    assert found[1].error == "line 2 of x.txt is empty" and found[2].given == {"input": "c"}
    assert letters(read(spec, tmp_path, "x.txt", "ab", chat=True)[0]) == ["<|im_start|>", "ab", "<|im_end|>"]


def test_objects(spec, tmp_path):
    lines = [{"prompt": "ab", "id": 7, "max_tokens": 3}, {"messages": [{"role": "user", "content": "c"}]}, "c c", {"text": "ab"}]
    found = read(spec, tmp_path, "x.jsonl", "\n".join(map(json.dumps, lines)))
    assert [letters(one) for one in found] == [["ab"], ["<|im_start|>", "c", "<|im_end|>"], ["c", "Ġc"], ["ab"]]
    assert found[0].given == {"id": 7, "input": "ab"} and found[0].asked["max_tokens"] == 3
    wrong = read(spec, tmp_path, "x.jsonl", '{"x": 1}\n[1]\n{"prompt": 3}\n{"messages": []}\n{\n')
    assert all(one.error and not one.ids for one in wrong)
    assert all(one.error.startswith(f"line {place} of x.jsonl") for place, one in enumerate(wrong, 1))
    both = read(spec, tmp_path, "x.jsonl", '{"prompt": "a", "messages": [{"role": "user", "content": "c"}]}\n{"prompt": "ab"}\n')
    assert both[0].error == 'line 1 of x.jsonl has both "messages" and "prompt", of which one is answered; leave the other out'
    assert both[1].error is None
    half = read(spec, tmp_path, "x.jsonl", '{"prompt": "a\\ud800"}\n{"messages": [{"role": "user", "content": "\\udfff"}]}\n')
    assert [one.error for one in half] == [f'line {place} of x.jsonl holds "\\u{code}", which is half a character'
                                           for place, code in enumerate(("d800", "dfff"), 1)]  # fmt: skip
    numbers = read(spec, tmp_path, "x.jsonl", '{"prompt": "ab", "id": NaN}\n{"prompt": "ab", "id": 1e999}\n{"prompt": 3, "id": "x"}\n""')
    assert [one.error for one in numbers[:2]] == ["line 1 of x.jsonl is not valid JSON",
                                                "line 2 of x.jsonl is not taken as JSON: 1e999 is too large a number"]  # fmt: skip
    assert numbers[2].given["id"] == "x" and read(spec, tmp_path, "x.jsonl", '{"q": "ab", "id": 7}')[0].given["id"] == 7
    assert numbers[3].error == "line 4 of x.jsonl has no tokens"


def test_what_a_talk_says_to_its_template(spec, tmp_path):
    """As apply_chat_template(talk, tools=..., **chat_template_kwargs)."""
    source = b"{{ 'a' * (tools | length) }}{{ thinks }}{{ messages[0].content }}"
    talk = {"messages": [{"role": "user", "content": "c"}], "tools": [{}, {}], "chat_template_kwargs": {"thinks": "b"}}
    (tmp_path / "x.jsonl").write_text(json.dumps(talk) + "\n" + json.dumps(talk | {"chat_template_kwargs": 3}))
    first, second = read_prompts(spec, FILES | {"chat_template.jinja": source}, str(tmp_path / "x.jsonl"))
    assert "".join(letters(first)) == "aabc" and "chat_template_kwargs is 3, expected an object" in second.error


@pytest.mark.parametrize("more, said", [
    ({}, "a"), ({"reasoning_effort": "low"}, "ab"), ({"reasoning_effort": "none", "tool_choice": "auto"}, "ac"),
    ({"tool_choice": "none"}, ""),
])  # fmt: skip
def test_a_line_says_to_the_template_what_a_service_is_told(spec, tmp_path, more, said):
    source = b"c{{ 'a' if tools }}{{ 'b' if reasoning_effort == 'low' }}{{ 'c' if enable_thinking is false }}"
    talk = {"messages": [{"role": "user", "content": "c"}], "tools": [{}]} | more
    files = FILES | {"chat_template.jinja": source}
    (tmp_path / "x.jsonl").write_text(json.dumps(talk))
    (found,) = read_prompts(spec, files, str(tmp_path / "x.jsonl"))
    assert "".join(letters(found)) == f"c{said}"
    assert chat(asking.Model(spec, files, ""), Fields(talk), 64).prompts == [found.ids]
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "c", "tools": [{}]} | more))
    assert read_prompts(spec, files, str(tmp_path / "x.jsonl"), chat=True)[0].ids == found.ids


@pytest.mark.parametrize("more, words", [
    ({"reasoning_effort": 3}, "reasoning_effort is 3"), ({"tool_choice": "required"}, "start serve and ask it"),
    ({"logit_bias": {"400": 1}}, "not of this model, which has 131"), ({"n": 3}, "n is 3, but a line"), ({"echo": True}, "echo is True"),
    ({"suffix": "x"}, "suffix is 'x'"), ({"best_of": 2}, "best_of is 2"), ({"functions": [{}]}, "functions is [{}]"),
    ({"min_tokens": 5}, "line 1 of x.jsonl: min_tokens is 5, which is not supported here; leave it out"),
    ({"guided_json": {"type": "object"}}, "guided_json is {'type': 'object'}, which is not supported here"),
    ({"reasoning_effort": "low"}, "reasoning_effort is low, which the model's chat template does not read; leave it out"),
    ({"n_probs": 3}, "n_probs is 3, which is not supported here"), ({"samplers": ["top_k"]}, "samplers is ['top_k'], which is not"),
    ({"verbosity": "low"}, "verbosity is 'low', which is not supported here"),  # that of a talk; a service refused them, and here they had
])  # fmt: skip
def test_what_a_line_asks_in_vain(spec, tmp_path, more, words):
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "c"}]} | more))
    question = SimpleNamespace(source=str(tmp_path / "x.jsonl"), strict=False)
    session = SimpleNamespace(store=SimpleNamespace(spec=spec, files=FILES))
    (found,), _ = _prompts(session, question, SimpleNamespace(chat=False, context=None), Sampling())
    assert words in found.error and not found.ids


def test_what_is_null_is_as_left_out(spec, tmp_path):
    line = {"prompt": "ab", "messages": None, "n": 1, "best_of": None, "echo": False, "suffix": "", "functions": []}
    first, second = read(spec, tmp_path, "x.jsonl", "\n".join(map(json.dumps, (line, {"prompt": None, "text": "ab"}))))
    assert letters(first) == letters(second) == ["ab"]
    check_met(first)


@pytest.mark.parametrize("text, words", [("<pad>", "token id 131, the model has only 131"), ("", "has no tokens")])
def test_no_door_takes_a_token_that_the_model_lacks(spec, tmp_path, text, words):
    """As fine-tuned checkpoints have whose tokenizer got a padding, and whose embeddings did not."""
    tokenizer = json.loads(FILES["tokenizer.json"])
    tokenizer["model"]["vocab"]["<pad>"] = spec.numbers("ids")
    tokenizer["added_tokens"].append({"id": spec.numbers("ids"), "content": "<pad>", "special": True} | dict.fromkeys(FLAGS, False))
    model = asking.Model(spec, {"tokenizer.json": json.dumps(tokenizer).encode(), "chat_template.jinja": b"{{ messages[0].content }}"}, "")
    talk = [{"role": "user", "content": text}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": talk}))
    assert words in str(read_prompts(spec, model.files, str(tmp_path / "x.jsonl"))[0].error)
    ways = [lambda: model.prompt(text), lambda: model.prompt(talk)]
    ways += [lambda: completion(model, Fields({"prompt": text}), 64), lambda: chat(model, Fields({"messages": talk}), 64)]
    for way in ways:
        with pytest.raises(InputError, match=words):
            way()


def test_built_in_ones(spec):
    assert all("capital" in one.given["input"] or "blue" in one.given["input"] for one in read_prompts(spec, FILES, None))


def test_arrays(spec, tmp_path):
    ids, mask = np.array([[5, 6, 7], [8, 9, 10], [1, 2, 400]]), np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1]])
    np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=mask)
    found = read_prompts(spec, {}, str(tmp_path / "x.npz"))
    assert [one.ids for one in found] == [[6, 7], [], []] and found[0].keep.tolist() == [1, 2]
    assert "no position" in found[1].error and "holds 400" in found[2].error
    np.savez(tmp_path / "y.npz", input_ids=ids, attention_mask=mask, position_ids=[[1, 0, 1], [1, 1, 1], [0, 1, 2]])
    assert [one.ids for one in read_prompts(spec, {}, str(tmp_path / "y.npz"))] == [[6, 7], [], []]
    np.savez(tmp_path / "y.npz", input_ids=ids, position_ids=[[0, 1, 2], [1, 2, 3], [0, 1, 2]])
    with pytest.raises(InputError, match="array 2 of y.npz: position_ids is 1 at position 0, where the model counts 0"):
        read_prompts(spec, {}, str(tmp_path / "y.npz"))
    assert check_room(found, 2, 2)[0].error.endswith("room for 2 with its answer; shorten it") and check_room(found, 3, 3)[0].error is None
    assert check_room(found, 2, 9)[0].error.endswith("; shorten it, or give a larger --context, up to 9")


def test_a_gap_in_a_mask_is_refused_where_layers_look_back_so_far_only(spec, tmp_path):
    """Mistral's window of transformers counts the positions that a mask leaves out; the next token was another one without a word."""
    near = read_model(write_folder("mistral", tmp_path)).spec
    ids, mask = np.full((3, 5), 7), np.array([[1, 1, 0, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=mask)
    gap, left, right = read_prompts(near, {}, str(tmp_path / "x.npz"))
    assert gap.error.startswith("array 1 of x.npz: attention_mask leaves out positions between others; ") and not gap.ids
    assert (left.error, right.error) == (None, None) and (len(left.ids), len(right.ids)) == (3, 4)
    assert [one.error for one in read_prompts(spec, {}, str(tmp_path / "x.npz"))] == [None] * 3  # its positions are counted without them


@pytest.mark.parametrize("name, content", [("x.csv", "text\nab\n"), ("x.txt", ""), ("x.bin", "ab")])
def test_refusals(spec, tmp_path, name, content):
    with pytest.raises(InputError):
        read(spec, tmp_path, name, content)
    with pytest.raises(InputError, match="not found"):
        read_prompts(spec, FILES, str(tmp_path / "nothing.txt"))
