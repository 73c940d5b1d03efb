"""Answers that keep to a schema, whatever the logits are: with random ones, what was written is JSON that the schema takes."""

import functools
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from test_streams import SOURCE, Rank, ended, until
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.chat import ChatTemplate
from hepti_mpi.models.inputs.tokens import SPECIALS, Tokens, word_piece_json
from hepti_mpi.models.tasks import forms
from hepti_mpi.models.tasks.forms import Forms, NoForms, Unformed, check
from hepti_mpi.models.tasks.sampling import Sampler, Sampling, Scores, sampling_of
from hepti_mpi.serving import sockets
from hepti_mpi.serving.front import Front
from hepti_mpi.serving.generation import Generator
from hepti_mpi.serving.http.fields import Fields
from hepti_mpi.serving.http.generation import Choices, chat, completion
from hepti_mpi.serving.http.refusals import Refused
from hepti_mpi.serving.streams import Grown, growing

pytest.importorskip("llguidance", reason="schemas are an extra")


def byte_level():
    """A small tokenizer for any text, whose tokens are bytes and a few of several that JSON likes to cut in the middle."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<end>", "<over>", *letters, "ab", '":', '",', '{"', "12"]
    merges = [("a", "b"), ('"', ":"), ('"', ","), ("{", '"'), ("1", "2")]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<end>", "<over>"])
    return made.to_str().encode()


FILES = {"tokenizer.json": byte_level()}
TOKENS = Tokens(FILES)
ENDS, WORDS = (1, 2), 270  # more than the tokenizer has, as of models whose tables are filled up
FORMS = Forms(FILES, WORDS, ENDS)
PERSON = {
    "type": "object", "required": ["name", "age", "kind"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                   "kind": {"enum": ["cat", "dog"]}},
}  # fmt: skip
NUMBERS = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
SPEC = SimpleNamespace(name="toy", positions=1000, numbers=lambda by: WORDS)
SERVED = SimpleNamespace(spec=SPEC, tokens=TOKENS, template=ChatTemplate("{% if tools %}{% endif %}{{ messages[0].content }}", {}))
SERVED.calls_tools, SERVED.calls_plainly, SERVED.call_form = True, False, ("<tool_call>\n", "arguments", False)
SERVED.check_writes = lambda: None


def schema(said):
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": said}}


def is_person(found):
    assert list(found) == ["name", "age", "kind"] and isinstance(found["name"], str) and len(found["name"]) <= 5
    assert type(found["age"]) is int and 0 <= found["age"] <= 150 and found["kind"] in ("cat", "dog")


def is_numbers(found):
    assert 2 <= len(found) <= 4 and all(type(one) is bool for one in found)


def logits_of(token, place):
    found = np.random.default_rng(1000 * place + token).standard_normal(WORDS).astype(np.float32) * 3
    found[[1, 2]] += 2  # ends, which may come where the answer is whole only
    return found


class Chance:
    """Ranks whose logits say nothing: random by the last token and its place."""

    slots, positions = 3, 400

    def prefill(self, slot, ids, first, candidates):
        return None if candidates is None else Scores.of_all(logits_of(ids[-1], first + len(ids)))

    def decode(self, rows, candidates):
        assert candidates == 0  # all logits
        return [Scores.of_all(logits_of(token, place + 1)) for _, token, place in rows]

    def copy(self, *how):
        """What follows a token is not by what is in the slot."""

    def check(self, slot, ids, first, candidates):
        return [Scores.of_all(logits_of(token, first + place + 1)) for place, token in enumerate(ids)]


def answers(asked, prompt=(40, 41), made=()):
    generator = Generator(Chance(), ENDS, TOKENS.decode, forms=FORMS)
    found = [generator.submit(prompt, one, made) for one in asked]
    while generator.busy:
        generator.step()
    return found


@pytest.mark.parametrize("said, holds", [(PERSON, is_person), (NUMBERS, is_numbers)])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 5, "top_p": 0.9}, {"repetition_penalty": 1.3}])
def test_random_logits_keep_to_a_schema(said, holds, how):
    many = 8 if how.get("temperature") else 1
    for answer in answers([Sampling(max_tokens=390, seed=seed, response_format=schema(said), **how) for seed in range(many)]):
        assert answer.finish_reason == "stop" and answer.tokens[-1] in ENDS
        holds(json.loads(answer.text))


def test_any_object_is_one_or_cut_off():
    found = answers([Sampling(max_tokens=300, temperature=1.0, seed=seed, response_format={"type": "json_object"}) for seed in range(12)])
    whole = [answer for answer in found if answer.finish_reason == "stop"]
    assert whole and all(isinstance(json.loads(answer.text), dict) for answer in whole)
    assert all(answer.text.lstrip().startswith("{") for answer in found)


def test_an_answer_goes_on_where_it_was_and_as_alone():
    asked = Sampling(max_tokens=390, temperature=1.0, seed=4, response_format=schema(PERSON))
    (whole,) = answers([asked])
    for made in (1, 7, len(whole.tokens) - 1):
        (again,) = answers([asked], made=whole.chosen[:made])
        assert again.tokens == whole.tokens and again.text == whole.text
    is_person(json.loads(whole.text))


def test_free_answers_beside_it_are_as_they_were():
    free, held = Sampling(max_tokens=30, temperature=1.0, seed=2), Sampling(max_tokens=30, seed=2, response_format=schema(NUMBERS))
    assert answers([free])[0].tokens == answers([free, held])[0].tokens
    assert not free.needs_all or held.needs_all


def test_guesses_are_checked_by_the_form(monkeypatch):
    """What stands in the prompt is guessed, and what of it the form takes is said."""
    said = {"const": "abababababababababababababababab"}
    text = json.dumps(said["const"])
    monkeypatch.setattr("hepti_mpi.serving.lookup.COSTS", 1e9)
    seen = []
    plain = Chance.check
    monkeypatch.setattr(Chance, "check", lambda self, slot, ids, *how: seen.append(ids) or plain(self, slot, ids, *how))
    prompt = TOKENS.plain(text[:-1] + "cd" + text, "it")
    (answer,) = answers([Sampling(max_tokens=100, response_format=schema(said))], prompt)
    assert seen and answer.text == text and answer.finish_reason == "stop"


def test_logprobs_are_of_the_model():
    logits = np.zeros(WORDS, np.float32)
    logits[50] = 9.0
    sampler = Sampler(Sampling(logprobs=1, response_format=schema(NUMBERS)), [], (), FORMS.form(NUMBERS))
    chosen = sampler.choose(Scores.of_all(logits))
    assert TOKENS.piece(chosen.token) == "[" and chosen.top[0][0] == 50 and chosen.logprob < -9


@pytest.mark.parametrize("said, why", [
    ({"type": "nonsense"}, "Invalid type: nonsense"), ({"not": {"type": "string"}}, "Unimplemented keys"),
    ({"$ref": "#/x"}, "does not exist"), ({"type": "string", "pattern": "("}, "regex parse error"), ({"enum": []}, "Unsatisfiable"),
    ({"$ref": "http://localhost/x.json"}, "does not fetch"), ({"type": float("nan")}, "cannot be kept to"),
    (functools.reduce(lambda inner, _: {"properties": {"a": inner}}, range(900), {}), "recursion"),
])  # fmt: skip
def test_schemas_that_no_answer_can_be_held_to(said, why):
    with pytest.raises(InputError, match=why) as caught:
        check(said)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("the schema of the answer cannot be kept to: ")


@pytest.mark.parametrize("said", [
    3, "json", [], {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
    {"type": "json_schema", "json_schema": {"schema": True}}, {"type": ["json_object"]},
])  # fmt: skip
def test_what_is_no_response_format(said):
    with pytest.raises(InputError, match="response_format is .*expected an object whose type is text, json_object, or json_schema"):
        sampling_of({"response_format": said}, Sampling())


def test_text_is_any_text():
    assert sampling_of({"response_format": {"type": "text"}}, Sampling()).schema is None
    with pytest.raises(InputError, match="ignore_end"):
        Sampling(ignore_end=True, response_format={"type": "json_object"})


def test_who_has_no_library_is_told_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(NoForms, match=r"pip install '\.\[schema\]'"):
        check({"type": "object"})
    check(None)


def test_models_that_cannot():
    pieces = {"tokenizer.json": word_piece_json([*SPECIALS, "a"])}
    for made, why in (
        (Forms({}, WORDS, ENDS), "tokenizer"), (Forms(FILES, WORDS, ()), "names none"), (Forms(FILES, 100, ENDS), "too small"),
        (Forms(pieces, 6, ENDS), "this model's tokenizer"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            Generator(Chance(), ENDS, TOKENS.decode, forms=made).submit([5], Sampling(response_format={"type": "json_object"}))


def test_one_that_cannot_go_on_ends_with_the_reason_and_no_other_does():
    endless, bias = schema({"$ref": "#"}), {TOKENS.plain("[", "it")[0]: -np.inf}
    asked = [{"response_format": endless}, {"response_format": schema(NUMBERS)}, {"response_format": schema(NUMBERS), "logit_bias": bias}]
    first, whole, biased = answers([Sampling(max_tokens=300, **one) for one in asked])
    assert first.finish_reason == biased.finish_reason == "error" and not biased.tokens
    assert "nothing fulfils it" in first.error and "no token is left" in biased.error
    is_numbers(json.loads(whole.text))
    with pytest.raises(Unformed):
        FORMS.form(NUMBERS).add(TOKENS.plain("x", "it")[0])


@pytest.mark.parametrize("more, status, why", [
    ({"response_format": schema({"not": {}})}, 400, "Unimplemented keys"), ({"response_format": {"type": "xml"}}, 422, "json_object"),
    ({"response_format": schema(PERSON), "tools": [{"type": "function"}]}, 422, "do not go together"),
    ({"response_format": schema({"enum": ["x" * forms.LARGEST]})}, 400, "the limit is"),
])  # fmt: skip
def test_what_a_service_refuses_before_anything_is_computed(more, status, why):
    with pytest.raises(Refused, match=why) as caught:
        chat(SERVED, Fields({"messages": [{"role": "user", "content": "a"}]} | more), 64)
    assert caught.value.status == status and caught.value.param == "response_format"


def test_a_model_whose_template_knows_no_tools_is_told_of_them(monkeypatch):
    """A call is then looked for by the marks that it was told, or begun with them."""
    monkeypatch.setattr(SERVED, "template", ChatTemplate("{{ messages[0].content }}|", {}))
    monkeypatch.setattr(SERVED, "calls_tools", False)
    monkeypatch.setattr(SERVED, "call_form", ("", "parameters", True))
    said = {"messages": [{"role": "user", "content": "a"}], "tools": TOOLS}
    some, none, must = (chat(SERVED, Fields(said | {"tool_choice": how}), 4000) for how in ("auto", "none", "required"))
    assert all(json.dumps(tool) in some.texts[0] for tool in TOOLS) and some.calls and must.calls
    assert none.texts == ["a|"] and not none.calls and must.texts == some.texts
    assert TOKENS.decode(must.prompts[0]) == f"{must.texts[0]}<tool_call>\n" and "arguments" in json.dumps(must.sampling.schema)


def test_what_asks_for_nothing_is_taken():
    """Some clients send every field that any server knows."""
    said = {"messages": [{"role": "user", "content": "a"}], "min_tokens": 0, "ignore_eos": False, "typical_p": 1.0, "verbosity": "medium",
            "skip_special_tokens": True, "stop_token_ids": [], "grammar": "", "reasoning_effort": "none", "unheard_of": 5, "echo": False,
            "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    assert chat(SERVED, Fields(said), 64).texts == ["a"]
    assert completion(SERVED, Fields({"prompt": "a", "n_predict": -1, "add_special_tokens": True}), 64).texts == ["a"]
    with pytest.raises(Refused, match="n_predict is 5"):
        completion(SERVED, Fields({"prompt": "a", "n_predict": 5}), 64)


def test_what_changes_nothing_in_an_answer_of_this_model_is_told_in_its_head(monkeypatch):
    """Some clients say always how much is to be thought; a model that knows no such thing answers all the same, as with vLLM."""
    said = {"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "low"}
    assert chat(SERVED, Fields(said), 64).headers == {"x-ignored-fields": "reasoning_effort"}
    assert not chat(SERVED, Fields(said | {"reasoning_effort": None}), 64).headers
    with pytest.raises(InputError, match="reasoning_effort is 'lots', expected one of none, minimal"):
        chat(SERVED, Fields(said | {"reasoning_effort": "lots"}), 64)
    monkeypatch.setattr(SERVED, "template", ChatTemplate("{{ messages[0].content }}{{ 'b' if enable_thinking }}", {}))
    wanted = chat(SERVED, Fields(said), 64)
    assert wanted.texts == ["ab"] and not wanted.headers


def test_what_a_service_takes(monkeypatch):
    said = {"messages": [{"role": "user", "content": "a"}], "response_format": schema(PERSON)}
    assert chat(SERVED, Fields(said | {"tools": [{"type": "function"}], "tool_choice": "none"}), 64).sampling.schema == PERSON
    assert completion(SERVED, Fields({"prompt": "a", "response_format": {"type": "json_object"}}), 64).sampling.schema == {"type": "object"}
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Refused, match="not installed") as caught:
        chat(SERVED, Fields(said), 64)
    assert caught.value.status == 501


# calls of tools that a request demands

COLOURED = {"type": "object", "required": ["colour"], "properties": {"colour": {"$ref": "#/$defs/Colour"}}, "additionalProperties": False,
            "$defs": {"Colour": {"enum": ["red", "blue"]}}}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "description": "it does", "parameters": parameters}}
         for name, parameters in (("light", COLOURED), ("heat", None), ("numbers", {"additionalProperties": False}))]  # fmt: skip
NAMED = {"type": "function", "function": {"name": "light"}}
SOME = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
ARGUMENTS = {"light": ({"colour": "red"}, {"colour": "blue"}), "heat": ({},), "numbers": ({},)}


def demanded(choice, **more):
    said = {"messages": [{"role": "user", "content": "a"}], "tools": TOOLS, "tool_choice": choice, "max_tokens": 390}
    return chat(SERVED, Fields(said | more), 400)


@pytest.mark.parametrize("form", [("<tool_call>\n", "arguments", False), ("[TOOL_CALLS]", "arguments", True), ("", "parameters", False)])
@pytest.mark.parametrize("choice, names", [("required", set(ARGUMENTS)), (NAMED, {"light"}), (SOME, {"light"}),
                                           ({"type": "function", "name": "heat"}, {"heat"})])  # fmt: skip
def test_a_call_that_is_demanded_is_given(monkeypatch, form, choice, names):
    """Whatever the logits are, and however the model's template has calls; whole, and as a stream."""
    monkeypatch.setattr(SERVED, "call_form", form)
    for seed in range(4):
        wanted = demanded(choice, seed=seed)
        assert TOKENS.decode(wanted.prompts[0]) == "a" + form[0]
        (answer,) = answers([wanted.sampling], wanted.prompts[0])
        assert answer.finish_reason == "stop"
        whole, parts = Choices(SERVED, wanted), Choices(SERVED, wanted)
        told = [Grown(letter) for letter in answer.text] + [Grown("", finish="stop")]
        for part in told:
            whole.add(0, part)
        (one,) = whole.document()["choices"]
        assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
        (call,) = one["message"]["tool_calls"]
        assert call["function"]["name"] in names and json.loads(call["function"]["arguments"]) in ARGUMENTS[call["function"]["name"]]
        found = [document["choices"][0] for part in told for document in parts.part(0, part)]
        assert [one["delta"].get("content") for one in found] == [None, None] and found[-1]["finish_reason"] == "tool_calls"
        assert found[0]["delta"]["tool_calls"][0]["function"] == call["function"]


def test_a_demanded_call_has_no_arguments_that_its_tool_does_not_name():
    """Clients leave that out: a small model wrote property after property until there was no room."""
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    said = {"properties": {"one": inner, "free": inner | {"additionalProperties": True}, "both": {"allOf": [inner, inner]}}}
    tools = [{"type": "function", "function": {"name": "x", "parameters": said}}]
    found = demanded("required", tools=tools).sampling.schema["$defs"]["call0"]
    assert found["additionalProperties"] is found["properties"]["one"]["additionalProperties"] is False
    assert found["properties"]["free"]["additionalProperties"] is True and found["properties"]["both"]["allOf"] == [inner, inner]


def test_what_else_is_said_of_tools():
    assert demanded("auto").sampling.schema is demanded("none").sampling.schema is demanded(None).sampling.schema is None
    assert demanded("auto").calls and not demanded("none").calls
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
    assert demanded(some).sampling.schema is None and demanded(some).calls
    text = ('<tool_call>{"name": "light", "arguments": {}}</tool_call>') * 2
    for together, count in ((True, 2), (None, 2), (False, 1)):
        choices = Choices(SERVED, demanded("auto", parallel_tool_calls=together))
        choices.add(0, Grown(text, finish="stop"))
        assert len(choices.document()["choices"][0]["message"]["tool_calls"]) == count
        assert len(choices.part(0, Grown(text, finish="stop"))[0]["choices"][0]["delta"]["tool_calls"]) == count


@pytest.mark.parametrize("more, status, why, param", [
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, 422, "no function 'x', which tool_choice names", "tool_choice"),
    ({"tool_choice": "required", "tools": []}, 422, "no function, and tool_choice wants one", "tool_choice"),
    ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, 422, "no function, and", "tool_choice"),
    ({"tool_choice": "always"}, 422, 'tool_choice is "always", expected none, auto, required', "tool_choice"),
    ({"tool_choice": 5}, 422, "tool_choice is 5", "tool_choice"), ({"tool_choice": {"type": "function"}}, 422, "expected", "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [3]}}, 422, "expected", "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"not": {}}}}]}, 400, "Unimplemented keys", "tool_choice"),
    ({"response_format": schema(PERSON)}, 422, "do not go together", "response_format"),
    ({"functions": [{"name": "x"}]}, 422, "ask with tools", "functions"),
    ({"verbosity": "low"}, 422, 'verbosity is "low", which is not supported here', "verbosity"),
    ({"min_tokens": 5}, 422, "min_tokens is 5, which", "min_tokens"),
    ({"web_search_options": {}}, 422, "is {}, which", "web_search_options"),
    ({"guided_choice": ["a"]}, 422, "guided_choice is", "guided_choice"), ({"echo": True}, 422, "echo is true", "echo"),
    ({"skip_special_tokens": False}, 422, "is false, which", "skip_special_tokens"),
    ({"modalities": ["text", "audio"]}, 422, "answers are text", "modalities"),
    ({"modalities": 3}, 422, "modalities is a number", "modalities"), ({"reasoning_effort": 3}, 422, "expected text", "reasoning_effort"),
    ({"parallel_tool_calls": "no"}, 422, "expected true or false", "parallel_tool_calls"),
    ({"messages": [{"role": "user", "content": "a" * 400}]}, 400, "or start the service with a larger --context, up to 1000",
     "messages"),
])  # fmt: skip
def test_what_a_demanded_call_is_refused_for(more, status, why, param):
    with pytest.raises(Refused, match=why) as caught:
        demanded(more.pop("tool_choice", "required"), **more)
    assert caught.value.status == status and caught.value.param == param


def test_a_demanded_call_needs_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Refused, match="not installed") as caught:
        demanded("required")
    assert caught.value.status == 501 and caught.value.param == "tool_choice"


# through the front


class Slow(Chance):
    def decode(self, *how):
        time.sleep(0.01)
        return super().decode(*how)

    def check(self, *how):
        time.sleep(0.01)
        return super().check(*how)


@pytest.fixture
def served():
    own = Front(SOURCE, near=True)
    rank = Rank(own, generator=Generator(Slow(), ENDS, None, forms=FORMS))
    yield own, rank
    own.end()


def asked(own, **how):
    parts = []
    own.grow(growing("a", [40, 41], Sampling(max_tokens=390, **how), TOKENS.decode, parts.append))
    return parts


def test_an_answer_of_a_service_keeps_to_it_also_after_a_failure(served):
    own, rank = served
    how = {"temperature": 1.0, "seed": 4, "response_format": schema(PERSON)}
    text, finish = ended(asked(own, **how))
    is_person(json.loads(text))
    assert finish == "stop"
    parts = asked(own, **how)
    until(lambda: len(parts) >= 4)
    sockets.shut(rank.remote.connection)
    until(lambda: own.connection is None)
    Rank(own, generator=Generator(Slow(), ENDS, None, forms=FORMS))
    assert ended(parts) == (text, "stop")


def test_what_goes_wrong_at_rank_0_is_told_and_is_no_length(served, monkeypatch):
    own, _ = served
    parts = asked(own, response_format=schema({"$ref": "#"}))
    assert ended(parts)[1] is None and isinstance(parts[-1].error, InputError) and "cannot be kept to" in str(parts[-1].error)
    monkeypatch.setattr(forms, "_library", lambda: (_ for _ in ()).throw(NoForms("llguidance is not installed")))
    parts = asked(own, response_format=schema(PERSON))
    assert ended(parts)[1] is None and "llguidance is not installed" in str(parts[-1].error)
    monkeypatch.undo()
    is_person(json.loads(ended(asked(own, response_format=schema(PERSON)))[0]))
