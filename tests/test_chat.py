"""Chat templates, and a talk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hepti_mpi.commands import chat as talking
from hepti_mpi.commands.main import main
from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models.checkpoints.generation import chat_files
from hepti_mpi.models.checkpoints.tokenizing import Built
from hepti_mpi.models.inputs.chat import ChatTemplate, checked_messages
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.serving.generation import Answer, Event
from hepti_mpi.weights.places import DEFAULT_STORE

KEY = "clean_up_tokenization_spaces"

CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TALK = [{"role": "user", "content": "Hi"}]


def text(source, messages=TALK, **told):
    return ChatTemplate(source, {"bos_token": "<s>"}).text(messages, **told)


def test_a_talk():
    assert text(CHATML) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(CHATML, answer=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_what_templates_use():
    assert text("{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}") == "<s>Hi"
    assert text("{{ {'a': 'é'} | tojson }}{{ strftime_now('%Y') | length }}") == '{"a": "é"}4'
    assert text("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert text("  {% if true %}\n  x{% endif %}") == "  x"


@pytest.mark.parametrize("source", [
    "{{ raise_exception('no system message') }}", "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ messages[5].content.x.y }}",
    "{{ 'x' * 19999999 }}", "{% for i in range(10 ** 9) %}{% endfor %}", "{{ 1 / 0 }}", "{{ messages | sum }}",
])  # fmt: skip
def test_what_is_refused_when_it_runs(source):
    with pytest.raises(InputError):
        text(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% include 'a' %}{% unknown %}", "x" * (1 << 21)])
def test_what_cannot_be_read(source):
    with pytest.raises(ModelError):
        ChatTemplate(source, {})


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert checked_messages([{"role": "user", "content": parts, "name": None}]) == [{"role": "user", "content": parts}]
    for wrong in (None, [], "x", [1], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]):
        with pytest.raises(InputError):
            checked_messages(wrong)


def test_arguments_of_calls_are_objects_whoever_asks():
    made = [{"function": {"name": "x", "arguments": '{"a": 1}'}}, {"function": {"arguments": "{"}}, 3]
    (found,) = checked_messages([{"role": "assistant", "tool_calls": made}])
    assert [found["tool_calls"][0]["function"]["arguments"], *found["tool_calls"][1:]] == [{"a": 1}, {"function": {"arguments": "{"}}, 3]


CALLED = [{"type": "function", "function": {"name": "light", "arguments": '{"on":true}'}}]
CALLS = "{% for c in m.tool_calls or () %}light{{ c.function.name[5:] }}{% endfor %}"


def called(each, content):
    """Return what a template of `each` message makes of a talk with a call of a tool, beside which that is the content."""
    asked, answer = {"role": "user", "content": "x"}, {"role": "tool", "content": "ok"}
    talk = [asked, {"role": "assistant", "content": content, "tool_calls": CALLED}, answer]
    return ChatTemplate(f"{{% for m in messages %}}{each}{{% endfor %}}", {}).text(checked_messages(talk))


@pytest.mark.parametrize("how, made", [
    ("{{ '(' + c.function.arguments + ')' }}", '({"on":true})'),  # DeepSeek R1's: what OpenAI's clients send, letter by letter
    ("({{ c.function.arguments }})", '({"on":true})'),  # which made {'on': True} of an object
    ("({{ c.function.arguments | tojson }})", '({"on": true})'),
])  # fmt: skip
def test_arguments_of_calls_are_text_where_a_template_asks_for_that(how, made):
    assert called("{{ m.content }}" + CALLS.replace("{% endfor %}", how + "{% endfor %}"), "") == f"xlight{made}ok"


@pytest.mark.parametrize("how, made", [
    ("{% if m['content'] is none %}<calls>{% else %}<{{ m['content'] }}>{% endif %}", "<x><calls>light<ok>"),  # DeepSeek R1's, too
    ("<{{ m.content }}>", "<x><>light<ok>"),  # and not None
])  # fmt: skip
def test_a_content_of_null_is_one_to_a_template_that_looks_for_it(how, made):
    assert called(how + CALLS, None) == made


CHATS = json.loads((Path(__file__).parent / "golden" / "chats.json").read_text())
FORMS = {"smollm2": "texts", "qwen3": "texts", "tulu": "texts", "printing": "texts", "smolvlm": "parts"}  # that these can take, others all


def chat(template, talk):
    marks = {"bos_token": "<bos>", "eos_token": "</s>"}
    return ChatTemplate(CHATS["templates"][template], marks).text(checked_messages(CHATS["talks"][talk]))


@pytest.mark.parametrize("talk", [talk for talk in CHATS["talks"] if talk != "calls"])
@pytest.mark.parametrize("template", CHATS["templates"])
def test_talks_as_transformers_writes_them(template, talk):
    """Golden: as the talk is, or in the form that the template can take, where transformers fails or leaves words out."""
    form = "texts" if (template, talk) == ("llama-3.2-vision", "all parts") else FORMS.get(template, "given")
    assert chat(template, talk) == CHATS["answers"][template][talk][form] is not None


@pytest.mark.parametrize("template", ["smollm2", "qwen2-vl", "printing"])
def test_calls_of_tools_are_told_to_a_template_that_knows_none(template):
    """transformers fails or leaves the call out, and the model reads the answer to a question that nobody asked."""
    told = '<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>'
    assert told in chat(template, "calls") and "done" in chat(template, "calls")
    assert chat("qwen3", "calls") == CHATS["answers"]["qwen3"]["calls"]["given"]


TOOL = {"type": "function", "function": {"name": "weather", "description": "à la carte"}}


@pytest.mark.parametrize("talk, first", [
    (TALK, "# Tools"), ([{"role": "developer", "content": "Be kind."}, *TALK], "Be kind.\n\n# Tools"),
    ([{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, *TALK], "Be kind.\n\n# Tools"),
])  # fmt: skip
def test_tools_are_told_to_a_template_that_knows_none(talk, first):
    """transformers leaves them out without a word: the model would answer as if there were none."""
    said = text(CHATML, talk, tools=[TOOL])
    assert said.startswith(f"<|im_start|>system\n{first}") and json.dumps(TOOL, ensure_ascii=False) in said and said.endswith(text(CHATML))
    assert "<tool_call>\n{" in said and text(CHATML, talk, tools=[]) == text(CHATML, talk)


@pytest.mark.parametrize("source", [
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}|{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}",
])  # fmt: skip
def test_tools_are_told_by_who_asks_where_there_is_no_system(source):
    said = text(source, [*TALK, {"role": "assistant", "content": "Yes?"}, *TALK], tools=[TOOL])
    assert said.startswith("# Tools") and said.endswith("</tool_call>\n\nHi|Yes?|Hi|") and said.count("# Tools") == 1


def test_a_word_of_tools_in_its_text_makes_no_template_know_them():
    """As firefunction's, which reads functions; it left tools out without a word."""
    said = text("You have tools. {% for m in messages %}{{ m.content }}|{% endfor %}{{ functions }}", tools=[TOOL])
    assert said.count("# Tools") == 1 and json.dumps(TOOL, ensure_ascii=False) in said


def test_a_template_that_knows_tools_is_left_alone():
    assert text("{% if tools and messages | length > 1 %}x{% endif %}{{ messages[0].content }}", tools=[TOOL]) == "Hi"


@pytest.mark.parametrize("source, told, why", [
    ("{{ messages | length }}", {"tools": [TOOL]}, "knows no tools, nor a message that tells of them; leave tools out"),
    ("{{ raise_exception('not today') }}", {"tools": [TOOL]}, "refuses the messages: not today"),
    (CHATML, {"more": {"enable_thinkng": False}}, "enable_thinkng is False, which the model's chat template does not read; leave it out"),
    (CHATML, {"more": {"enable_thinking": True}}, "enable_thinking is True"), (CHATML, {"more": {"reasoning_effort": "low"}}, "is 'low'"),
    (CHATML + "{{ enable_thinking }}", {"more": {"thinking": True}}, "thinking is True"),  # a part of another name is none
    (CHATML + "{# by effort #}", {"more": {"effort": 1}}, "effort is 1"), (CHATML + "{% set own = 1 %}", {"more": {"own": 2}}, "own is 2"),
])  # fmt: skip
def test_what_a_template_would_pass_over_is_refused(source, told, why):
    with pytest.raises(InputError, match=why):
        text(source, **told)


LEVELS = "{{ reasoning_effort }}"
SWITCH = "{{ enable_thinking }}"


@pytest.mark.parametrize("source, effort, said", [
    (LEVELS, "low", "low"), (LEVELS, "no_think", "no_think"), (LEVELS, None, ""), (SWITCH, "low", "True"), (SWITCH, "none", "False"),
    (LEVELS + SWITCH, "high", "highTrue"), ("{{ thinking }}", "minimal", "True"), (CHATML, "low", None), (CHATML, "none", None),
])  # fmt: skip
def test_how_much_is_to_be_thought_is_told_as_the_template_reads_it(source, effort, said):
    """As vLLM: how much where it knows that, whether at all where it knows no more, and nothing of a model that does not think."""
    plain = text(source)
    assert text(source, effort=effort) == (plain if said is None else said)
    own = ChatTemplate(source, {})
    assert own.passes_over(effort) == (said is None)
    assert own.passes_over("low", [TOOL]) == (source == CHATML)


def test_what_is_told_by_name_overrules_how_much_is_to_be_thought():
    assert text(LEVELS + SWITCH, effort="low", more={"enable_thinking": False, "reasoning_effort": "high"}) == "highFalse"


def test_an_effort_that_nobody_knows():
    with pytest.raises(InputError, match="reasoning_effort is 'lots', expected one of none, minimal, low, medium, high, xhigh, max"):
        text(SWITCH, effort="lots")


@pytest.mark.parametrize("template", CHATS["templates"])
def test_what_a_developer_says_is_not_lost(template):
    """transformers leaves it out where a template knows no such role, or fails; to OpenAI's newer clients it is the system."""
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    marks = {"bos_token": "<bos>", "eos_token": "</s>"}
    own = ChatTemplate(CHATS["templates"][template], marks)
    assert own.text([said[0] | {"role": "developer"}, said[1]]) == own.text(said)


def test_a_template_that_knows_developers_has_them():
    own = ChatTemplate("{% for one in messages %}{{ one.role if one.role == 'developer' else 'x' }} {% endfor %}", {})
    assert own.text([{"role": "developer", "content": "developer"}]) == "developer "


def test_a_refusal_of_the_template_counts():
    with pytest.raises(InputError, match="roles must alternate"):
        chat("gemma-3", "calls")


NAMED = {"default": "plain {{ messages[0].content }}", "tool_use": "{{ tools | length }} <tool_call> {{ messages[0].content }}"}


@pytest.mark.parametrize("way", ["list", "object", "files"])
def test_templates_by_name(way, tmp_path):
    """As apply_chat_template of transformers 5.23: a talk with tools has the template of that name, where there is one."""
    said = NAMED if way == "object" else [{"name": name, "template": source} for name, source in NAMED.items()]
    if way == "files":
        said = "of the other file"
        (tmp_path / "chat_template.jinja").write_text(NAMED["default"])
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(NAMED["tool_use"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    files = chat_files(tmp_path, Built({}, frozenset()))
    template = ChatTemplate.of(files)
    talk = [{"role": "user", "content": "hello"}]
    assert template.text(talk) == "plain hello" and template.text(talk, tools=[{}, {}]) == "2 <tool_call> hello"
    assert ChatTemplate.of({name: files[name] for name in ("chat_template.jinja",)}).text(talk, tools=[]) == "plain hello"


def test_a_template_for_talks_with_tools_alone(tmp_path):
    """As apply_chat_template of transformers 5.23, which has none for other talks."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": {"tool_use": NAMED["tool_use"], "rag": "x"}}))
    template = ChatTemplate.of(chat_files(tmp_path, Built({}, frozenset())))
    talk = [{"role": "user", "content": "hello"}]
    assert template.needs_tools and template.text(talk, tools=[{}]) == "1 <tool_call> hello"
    with pytest.raises(InputError, match="refuses the messages: it is for talks with tools alone, and none are given"):
        template.text(talk)


def test_another_template_that_is_called_file(tmp_path):
    """AutoTokenizer of transformers 5.23 calls the first one chat_template_file, and others by this and their names."""
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("chat_template", "additional_chat_templates/file", "additional_chat_templates/default"):
        (tmp_path / f"{name}.jinja").write_text(name)
        assert chat_files(tmp_path, Built({}, frozenset()))["chat_template.jinja"] == name.encode()


def test_special_tokens_of_any_name_are_there_for_templates(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }} {{ image }} {{ messages[0].content }}")
    built = Built({"tokenizer_config.json": b"{}"}, frozenset(), {"bos_token": "<s>", "image": "<image>"})
    assert ChatTemplate.of(chat_files(tmp_path, built)).text([{"role": "user", "content": "hello"}]) == "<s> <image> hello"


def test_an_empty_folder_of_templates_says_nothing(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "plain"}))
    assert chat_files(tmp_path, Built({}, frozenset()))["chat_template.jinja"] == b"plain"


@pytest.mark.parametrize("kind, said, taken", [
    ("BPE", {}, True), ("Unigram", {}, True), ("Unigram", {KEY: False}, True), ("BPE", {KEY: True}, True), ("Unigram", {KEY: True}, False),
    ("WordLevel", {KEY: True}, False), ("BPE", {KEY: True, f"{KEY}_for_bpe_even_though_it_will_corrupt_output": True}, False),
])  # fmt: skip
def test_cleaned_text_is_refused_where_it_is_cleaned(tmp_path, kind, said, taken):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    built = Built({"tokenizer.json": json.dumps({"model": {"type": kind}}).encode()}, frozenset())
    if taken:
        chat_files(tmp_path, built)
    else:
        with pytest.raises(ModelError, match="clean_up_tokenization_spaces is True"):
            chat_files(tmp_path, built)


def test_who_writes_is_talked_with_whatever_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert talking._writers() == []
    (tmp_path / "weights").mkdir()
    for source, name, found in (("tiny-bert", DEFAULT_STORE, []), ("tiny-llama", "weights/b.h5", ["b.h5"]),
                                ("tiny-llama", "weights/c.h5", ["b.h5", "c.h5"])):  # fmt: skip
        done = CliRunner().invoke(main, ["slice", f"random:{source}", str(name)])
        assert done.exit_code == 0 and talking._writers() == [Path("weights") / one for one in found]
        (tmp_path / "weights" / "damaged.h5").write_bytes(b"x")
    said = str(CliRunner().invoke(main, ["chat", "--threads", "1"]).exception)
    assert said.endswith("give its inputs to run, or name one that does with --weights: weights/b.h5, weights/c.h5")


@pytest.mark.parametrize("how, said", [("stop", ""), ("length", "cut off at 1 token;"), ("error", "logits that are not finite")])
def test_a_talk_says_when_an_answer_has_not_come_to_its_end(monkeypatch, capfd, how, said):
    answer = Answer([1], Sampling(), None, tokens=[5], finish_reason=how, error=said if how == "error" else None)
    talked(monkeypatch, ["hello"], answer)
    out, err = capfd.readouterr()
    assert "well" in out and (said in err if said else not err)


def test_a_line_that_is_no_text_is_not_sent_and_the_talk_goes_on(monkeypatch, capfd):
    """The talk began anew, without what had been said; and where lines come as a locale's strict UTF-8, a traceback ended it."""
    answer = Answer([1], Sampling(), None, tokens=[5], finish_reason="stop")
    read = talked(monkeypatch, ["hello", b"a\xe4b".decode(errors="surrogateescape"), "again"], answer)
    assert [message["content"] for message in read[-1]] == ["hello", answer.text, "again"] and len(read) == 2
    assert "that line is not UTF-8: byte 2 is 0xe4; it was not sent" in capfd.readouterr().err


@pytest.mark.parametrize("room, system, asked, said", [
    (3, None, [["a"], ["a", "", "b"], ["a", "", "b", "", "c"], ["c"], ["c", "", "d"]],
     "there is room for 3; the talk begins anew with that line, and may be longer by --context"),
    (0, None, [["a"], ["b"], ["c"], ["d"]], "there is room for 0; shorten it; that line was not sent"),
    (2, "be brief", [["s", "a"], ["s", "a", "", "b"], ["s", "b"], ["s", "b", "", "c"], ["s", "c"], ["s", "c", "", "d"],
                     ["s", "d"]], "there is room for 2; the talk begins anew with that line"),
])  # fmt: skip
def test_a_talk_that_is_too_long_begins_anew_with_what_was_typed(monkeypatch, capfd, room, system, asked, said):
    """It was lost: two words were refused as too long, and had to be typed again."""
    answer = Answer([1], Sampling(), None, tokens=[5], finish_reason="stop")
    read = talked(monkeypatch, ["a", "b", "c", "d"], answer, room=room, system=system)
    assert [["s" if one["role"] == "system" else one["content"] for one in messages] for messages in read] == asked
    assert said in " ".join(capfd.readouterr().err.split())


def test_lines_are_read_whatever_bytes_they_have():
    code = "from hepti_mpi.__main__ import _set_streams; from hepti_mpi.comm.launcher import typed_lines; _set_streams()\n"
    environ = {name: value for name, value in os.environ.items() if "PMIX" not in name} | {"PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-c", code + "print(ascii(list(typed_lines())))"]
    done = subprocess.run(command, input=b"a\xe4b\n\xc3\xa4", env=environ, capture_output=True, timeout=60)
    assert done.stdout == b"['a\\udce4b\\n', '\\xe4']\n", done


def test_while_a_long_line_is_read_that_is_said(monkeypatch, capfd):
    """It was silent, for minutes on a small board, until the first word of the answer."""
    monkeypatch.setattr("hepti_mpi.commands.meter.TOLD_SECONDS", 0.01)
    answer = Answer([1], Sampling(), None, tokens=[5], finish_reason="stop")
    talked(monkeypatch, ["hello"], answer, parts=2)
    out, err = capfd.readouterr()
    assert out.count("well") == 1 and err.startswith("reading: 0.") and err.count("reading: ") > 1


def talked(monkeypatch, lines, answer, parts=0, room=9, system=None):
    """Talk with a model that says the same to each line, behind so many steps of some time that read it; return the messages that it was
    given each time. There is `room` for so many."""
    making, read, left = SimpleNamespace(busy=False), [], [()] * parts

    def submit(prompt, sampling):
        if len(prompt) > room:
            raise InputError(f"there is room for {room}; shorten it")
        making.busy = True
        return answer

    def step():
        if left:
            time.sleep(0.1)
            return left.pop()
        making.busy = False
        return [Event(answer, None, "well", answer.finish_reason)]

    making.submit, making.step = submit, step
    monkeypatch.setattr("hepti_mpi.commands.writers.maker", lambda loaded, session: making)
    prompter = SimpleNamespace(of_messages=lambda talk, where: read.append(list(talk)) or [1] * len(talk))
    monkeypatch.setattr("hepti_mpi.models.inputs.prompts.Prompter", lambda spec, files: prompter)
    monkeypatch.setattr("hepti_mpi.comm.launcher.typed_lines", lambda: iter(lines))
    session = SimpleNamespace(store=SimpleNamespace(spec=None, files={}))
    talking._talk(SimpleNamespace(rest=lambda: None), session, system, SimpleNamespace(sampling=Sampling))
    return read
