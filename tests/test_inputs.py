"""Texts as people have them: lines, JSON lines and tables; what cannot be read costs its own place only."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.inputs.requests import read_requests, text_requests
from hepti_mpi.models.inputs.text import Item, Reading, read_texts
from hepti_mpi.models.inputs.tokens import SPECIALS, Tokens, word_piece_json

GOLDEN = Path(__file__).parent / "golden"


def read(tmp_path, name, content, **how):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_texts(str(tmp_path / name), None, Reading(**how))


def refused(tmp_path, name, content, *words, **how):
    with pytest.raises(InputError) as caught:
        read(tmp_path, name, content, **how)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value) and not str(caught.value).endswith(".")


def given(items):
    return [item.error or (item.text if item.pair is None else (item.text, item.pair)) for item in items]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_lines_end_in_every_way(tmp_path, end, last, begin):
    lines = ["the cat", "", "sat\u2028on\x0cit"]
    items = read(tmp_path, "x.txt", begin + end.join(lines) + end * last)
    assert given(items) == ["the cat", "line 2 of x.txt is empty", "sat\u2028on\x0cit"] and items[1].text == ""
    table = read(tmp_path, "x.csv", begin + end.join(["text", "the cat", '"a, b"']) + end * last)
    assert given(table) == ["the cat", "a, b"]
    objects = read(tmp_path, "x.jsonl", begin + end.join(['{"text": "the cat"}', '"b"']) + end * last)
    assert given(objects) == ["the cat", "b"]


def test_what_is_no_json_costs_its_line(tmp_path):
    lines = [b'{"text": "a", "id": 7}', b"{cat}", b'{"txt": 1}', b'{"text": 3, "id": "x"}', b"", b'{"text": NaN}', b"[1]", b" ",
             b'"\xff"']  # fmt: skip
    items = read(tmp_path, "x.jsonl", b"\n".join(lines))
    assert [item.error for item in items] == [
        None, "line 2 of x.jsonl is not valid JSON", 'line 3 of x.jsonl has no "text"',
        'line 4 of x.jsonl has something else than text as "text"', "line 5 of x.jsonl is empty", "line 6 of x.jsonl is not valid JSON",
        'line 7 of x.jsonl is neither an object with a "text" nor a JSON string or two', "line 8 of x.jsonl is empty",
        "line 9 of x.jsonl is not UTF-8: byte 2 is 0xff",
    ]  # fmt: skip
    assert [item.id for item in items[:4]] == [7, None, None, "x"]
    assert [item.text for item in items] == [
        "a", "{cat}", '{"txt": 1}', '{"text": 3, "id": "x"}', "", '{"text": NaN}', "[1]", " ", '"?"',
    ]  # fmt: skip


def test_what_is_said_twice_costs_its_line(tmp_path):
    """The last of two texts was answered, without a word; two columns of a table were refused."""
    items = read(tmp_path, "x.jsonl", b'{"text": "a", "text": "b"}\n{"text": "c", "more": {"id": 1, "id": 2}}\n{"text": "d"}')
    assert [item.error for item in items] == [
        'line 1 of x.jsonl is not taken as JSON: it has "text" twice', 'line 2 of x.jsonl is not taken as JSON: it has "id" twice', None,
    ]  # fmt: skip


@pytest.mark.parametrize("name, content, expected", [
    ("x.jsonl", '{"q": "a"}\n{"Q": "b", "id": 1}\n{"q": ""}', [("a", None), ('{"Q": "b", "id": 1}', None), ("", None)]),
    ("x.jsonl", '{"q": "a", "text": "' + "b" * 2000 + '"}\n{"text": "' + "b" * 2000 + '"}',
     [("a", None), ('{"text": "' + "b" * 990, None)]),
    ("x.csv", "id,q\n1,a\n2\n3, \n4,b,c\n5,\"d\"e\n", [("a", None), ("2", None), ("3,", None), ("4,b,c", None), ('5,"d"e', None)]),
    ("x.tsv", "id\tq\n1\ta\n2\n", [("a", None), ("2", None)]),
])  # fmt: skip
def test_the_answer_for_a_text_that_is_not_there_shows_the_line(tmp_path, name, content, expected):
    """It said that an empty text had been given."""
    assert [(item.text, item.pair) for item in read(tmp_path, name, content, field="q")] == expected


def test_the_answer_for_half_a_pair_shows_what_there_is(tmp_path):
    items = read(tmp_path, "x.csv", "a,b,id\nx,y,1\nx,,2\n,,3\nx\n", field="a", pair="b")
    assert [(item.text, item.pair) for item in items] == [("x", "y"), ("x", ""), (",,3", None), ("x", None)]
    items = read(tmp_path, "x.jsonl", '{"a": "x", "b": "y"}\n{"a": "x"}\n["c", 3]', field="a", pair="b")
    assert [(item.text, item.pair) for item in items] == [("x", "y"), ('{"a": "x"}', None), ('["c", 3]', None)]


def test_json_that_is_not_taken_is_not_called_invalid(tmp_path):
    items = read(tmp_path, "x.jsonl", '{"text": "a", "id": 1e999}\n' + "[" * 99999 + f'\n{{"text": "a", "id": {"9" * 5000}}}\n"b"')
    assert [item.error for item in items] == [
        "line 1 of x.jsonl is not taken as JSON: 1e999 is too large a number",
        "line 2 of x.jsonl is not taken as JSON: it is nested too deeply",
        "line 3 of x.jsonl is not taken as JSON: a number has 5000 digits", None]  # fmt: skip


def test_an_empty_second_text_is_none_to_a_pipeline_and_one_to_sentence_transformers():
    """As transformers 5.23 and sentence-transformers 6.2 tokenise ("a", "")."""
    model = read_model(GOLDEN / "bert_sentence")
    plain = replace(model.spec, options={key: value for key, value in model.spec.options.items() if key != "prompt"})
    ids = [text_requests(spec, model.files, [Item("x", "cat", "")], True)[0].arrays["ids"].tolist() for spec in (model.spec, plain)]
    assert ids[0] == [*ids[1], ids[1][-1]] and len(ids[1]) == len(text_requests(plain, model.files, [Item("x", "cat")], True)[0].keep)


@pytest.mark.parametrize("content", ['[\n"a",\n"b"\n]\n', '["a", "b", "c"]', '[["a", "b"], ["c", "d"]]', '[{"text": "a"},\n{"text": "b"}]'])
def test_a_list_as_a_whole_is_not_taken_line_by_line(tmp_path, content):
    refused(tmp_path, "x.jsonl", content, "x.jsonl is one JSON list", "jq -c '.[]' FILE")


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
def test_utf_16_without_a_mark_is_no_text_with_nulls(tmp_path, name, coding):
    refused(tmp_path, name, 'text\n"hello"\n'.encode(coding), f"{name} is UTF-16 without a mark")
    assert given(read(tmp_path, "x.txt", b"\0\n")) == ["\0"]


def test_what_json_says_to_be_empty_is_a_text(tmp_path):
    """As sentence-transformers and a service answer it; a line or a cell with nothing in it is none."""
    items = read(tmp_path, "x.jsonl", '""\n{"text": "", "id": 1}\n" "\n["", "b"]\n{"text": ["a", ""]}\n{"text": "", "text_pair": null}\n')
    assert [(item.text, item.pair, item.error) for item in items] == [
        ("", None, None), ("", None, None), (" ", None, None), ("", "b", None), ("a", "", None), ("", None, None),
    ]  # fmt: skip
    assert items[1].id == 1 and given(read(tmp_path, "x.jsonl", '{"q": ""}', field="q")) == [""]


def test_the_field_is_named(tmp_path):
    lines = "\n".join(json.dumps({"question": f"q{n}", "answer": f"a{n}", "id": n}) for n in range(3))
    assert given(read(tmp_path, "x.jsonl", lines, field="question")) == ["q0", "q1", "q2"]
    pairs = read(tmp_path, "x.jsonl", lines, field="question", pair="answer")
    assert given(pairs) == [("q0", "a0"), ("q1", "a1"), ("q2", "a2")] and [item.id for item in pairs] == [0, 1, 2]
    refused(tmp_path, "x.jsonl", lines, 'x.jsonl has no field "text"; it has: question, answer, id; name one of them with --field')
    refused(tmp_path, "x.jsonl", lines, 'x.jsonl has no field "reply"', "with --pair", field="question", pair="reply")
    refused(tmp_path, "x.txt", lines, "x.txt is a text per line", "--field", field="question")
    piped = read_texts("-", io.BytesIO(lines.encode()), Reading(field="answer"))
    assert given(piped) == ["a0", "a1", "a2"] and piped[0].origin == "line 1 of standard input"


def test_pairs(tmp_path):
    lines = ['{"text": "a", "text_pair": "b"}', '{"text": ["a", "c"]}', '{"text": "a", "text_pair": null}', '{"text": ["a"]}',
             '{"text": "a", "text_pair": ""}', '{"text": ["a", 1]}', '{"text": "a", "text_pair": 1}']  # fmt: skip
    items = read(tmp_path, "x.jsonl", "\n".join(lines))
    assert given(items) == [
        ("a", "b"), ("a", "c"), "a", 'line 4 of x.jsonl has something else than text as "text"',
        ("a", ""),
        'line 6 of x.jsonl has something else than text as "text"', 'line 7 of x.jsonl has something else than text as "text_pair"',
    ]  # fmt: skip
    assert given(read(tmp_path, "x.csv", "text,text_pair\na,b\na,\n")) == [("a", "b"), 'line 3 of x.csv has nothing in column "text_pair"']
    assert given(read(tmp_path, "x.csv", "text,text_pair\na,b\n", field="text")) == ["a"]


def test_pairs_without_a_name(tmp_path):
    items = read(tmp_path, "x.jsonl", '["a", "b"]\n["a", 3]\n["a"]\n"c"\n')
    assert given(items)[0] == ("a", "b") and given(items)[3] == "c" and all(item.error for item in items[1:3])
    for name, content in (("x.jsonl", '{"text": "a", "text2": "b"}'), ("x.csv", "text,text2\na,b\n")):
        refused(tmp_path, name, content, 'x.', '"text2"', "--pair text2", "--field text")
        assert given(read(tmp_path, name, content, pair="text2")) == [("a", "b")]
        assert given(read(tmp_path, name, content, field="text")) == ["a"]


def test_tables(tmp_path):
    table = 'id,label, text \n7,x,"the ""cat"", sat\non the mat"\n\n8,y,\n9,z,a,b\n10\n11,w,"a"b\n12,v,last\n'
    items = read(tmp_path, "x.csv", table)
    assert [item.origin for item in items] == [f"line {number} of x.csv" for number in (2, 5, 6, 7, 8, 9)]
    assert items[0] == Item("line 2 of x.csv", 'the "cat", sat\non the mat', id="7")
    assert (items[1].error, items[1].id) == ('line 5 of x.csv has nothing in column "text"', "8")
    assert items[2].error == 'line 6 of x.csv has 4 columns, the first line names 3; quote a text that holds a ","'
    assert items[3].error == 'line 7 of x.csv has no "text"'
    assert items[4].error.startswith("line 8 of x.csv is no row of a table: ',' expected after '\"'")
    assert (items[5].text, items[5].id) == ("last", "12")
    assert given(read(tmp_path, "x.tsv", "body\tn\na, b\t1\n", field="body")) == ["a, b"]
    assert given(read(tmp_path, "x.csv", "text,text_pair,n,n,text_pair\na,b,1,2,c\n", field="text")) == ["a"]  # as what is not read
    assert given(read(tmp_path, "x.CSV", b"text\nok\nd\xffg\n")) == ["ok", "line 3 of x.CSV is not UTF-8: byte 2 is 0xff"]
    assert len(read(tmp_path, "x.csv", "text\n" + "word " * 50_000)[0].text) == 250_000
    broken = read(tmp_path, "x.csv", b"id,text\n7,d\xffg\n\xfe,x\n8,a,b\n")  # a number that stands for another row would be worse than none
    assert [item.id for item in broken] == ["7", None, None] and all(item.error for item in broken)


def test_a_stray_quote_costs_its_own_line(tmp_path):
    table = 'id,text\n1,one\n2,"unclosed\n3,three\n4,say "x" now\n5,"fi\nve"\n6,"never\n7,seven\n'
    items = read(tmp_path, "x.csv", table)
    assert [item.origin for item in items] == [f"line {number} of x.csv" for number in (2, 3, 4, 5, 6, 8, 9)]
    assert [item.text for item in items if item.error is None] == ["one", "three", 'say "x" now', "fi\nve", "seven"]
    assert all("close each quote" in item.error for item in (items[1], items[5]))


def test_a_number_that_json_cannot_write_costs_its_own_line(tmp_path):
    items = read(tmp_path, "x.jsonl", '{"text": "a", "id": 1e999}\n{"text": "b", "id": {"a": [-1e999]}}\n{"text": "c", "id": 1e9}\n')
    assert [item.error is None for item in items] == [False, False, True] and items[2].id == 1e9


@pytest.mark.parametrize("name, content, words, how", [
    ("x.csv", "sentence,label\na,1\n", 'x.csv has no column "text"; it has: sentence, label; name one of them with --field', {}),
    ("x.csv", "text,text\na,1\n", 'x.csv has 2 columns "text"', {}),
    ("x.csv", "text,text_pair,text_pair\na,b,c\n", 'x.csv has 2 columns "text_pair"; name them apart', {}),
    ("x.tsv", "id\tq\tid\n1\ta\t2\n", 'x.tsv has 2 columns "id"; name them apart', {"field": "q"}),
    ("x.csv", '"text\nok\n', "line 1 of x.csv is no row of a table", {}),
    ("x.csv", "text\n", "x.csv has no rows below its head", {}),
    ("x.csv", "", "x.csv has no rows", {}),
    ("x.tsv", "text\tb\n", "x.tsv has no column", {"pair": "c"}),
    ("x.csv", "text;id\na;1\n", 'x.csv has ";" between its columns; save it with ",", then give it again', {}),
    ("x.csv", "text\tid\na\t1\n", 'x.csv has "\\t" between its columns; save it with ",", then give it again', {"field": "id"}),
    ("x.tsv", "text,id\na,1\n", 'x.tsv has "," between its columns; save it with "\\t", then give it again', {}),
    ("x.csv", '"a,b"\nc\n', 'x.csv has no column "text"; it has: a,b', {}),
    ("x.jsonl", '[{"text": "a"}, {"text": "b"}]', "x.jsonl is one JSON list; write each of its members into a line", {}),
    ("x.jsonl", '[\n {"text": "a"},\n {"text": "b"}\n]\n', "x.jsonl is one JSON list; write each of its members into a line", {}),
    ("x.txt", "", "x.txt is empty", {}),
    ("x.txt", "hello\n".encode("utf-16"), "x.txt is UTF-16: save it as UTF-8", {}),
    ("x.txt", "hi\n".encode("utf-16-be"), "x.txt is UTF-16 without a mark at its beginning: save it as UTF-8", {}),
    ("x.txt", "Привет, мир\nещё строка\n".encode("utf-16-le"), "x.txt holds no text in UTF-8", {}),
    ("x.txt", "hello\n".encode("utf-32"), "x.txt is UTF-32: save it as UTF-8", {}),
    ("x.txt", b"\x1f\x8b\x08...", "x.txt is compressed with gzip: unpack it", {}),
    ("x.csv", b"PK\x03\x04...", "or a spreadsheet", {}),
    ("x.json", "[]", "the model takes texts: .txt, .jsonl, .csv, .tsv", {}),
])  # fmt: skip
def test_what_holds_no_texts(tmp_path, name, content, words, how):
    refused(tmp_path, name, content, words, **how)


@pytest.mark.parametrize("name, content", [("x.csv", "ID,Text\n7,hello\n"), ("x.jsonl", '{"ID": "7", "Text": "hello"}\n')])
def test_what_spreadsheets_call_an_id_is_one(tmp_path, name, content):
    (item,) = read(tmp_path, name, content, field="Text")
    assert (item.text, item.id) == ("hello", "7")


def test_a_folder_is_no_text(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(InputError, match="x.txt is a folder; the model takes texts"):
        read_texts(str(tmp_path / "x.txt"), None, Reading())


def test_half_a_character_costs_its_line_and_an_id_of_such_is_kept(tmp_path):
    lines = [r'{"text": "a \ud83d\ude00", "id": "\udc00"}', r'{"text": "b \ud800", "id": 1}', r'["c", "\udc80"]', '"d"']
    items = read(tmp_path, "x.jsonl", "\n".join(lines))
    assert [item.error for item in items] == [
        None, r'line 2 of x.jsonl holds "\ud800", which is half a character',
        r'line 3 of x.jsonl holds "\udc80", which is half a character', None,
    ]  # fmt: skip
    assert (items[0].text, items[0].id) == ("a \U0001f600", "\udc00") and (items[1].text, items[1].id) == ("b \ud800", 1)


@pytest.mark.parametrize("begin", [b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", b"\x7fELF\2\1\1\0\xe0"])
def test_what_is_no_text_as_a_whole_is_refused_as_a_whole(tmp_path, begin):
    refused(tmp_path, "x.txt", begin + b"\n\nabc\n" * 9, "x.txt holds no text", "the model takes texts: .txt, .jsonl", ".npz")
    with pytest.raises(InputError, match="standard input holds no text in UTF-8; the model takes texts"):
        read_texts("-", io.BytesIO(begin), Reading())
    assert given(read(tmp_path, "x.txt", "a\0b\nc")) == ["a\0b", "c"]
    assert given(read(tmp_path, "x.txt", b"a\0b\ncaf\xe9\nc\n")) == ["a\0b", "line 2 of x.txt is not UTF-8: byte 4 is 0xe9", "c"]


def test_masks_with_gaps_are_refused_where_distances_count(tmp_path):
    """Padding on either side is none; a BERT, whose positions are numbers in a table, takes gaps."""
    golden = Path(__file__).parent / "golden"
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]])
    np.savez(tmp_path / "in.npz", input_ids=np.full((3, 6), 7), attention_mask=mask)
    model = read_model(golden / "modernbert")
    requests = read_requests(model.spec, model.files, str(tmp_path / "in.npz"))
    assert [bool(request.error) for request in requests] == [False, False, True] and "array 3 of in.npz" in requests[2].error
    model = read_model(golden / "bert")
    assert not any(request.error for request in read_requests(model.spec, model.files, str(tmp_path / "in.npz")))


@pytest.mark.parametrize("folder", sorted(path.parent for path in GOLDEN.glob("*/tokenizer.json")), ids=lambda path: path.name)
@pytest.mark.parametrize("limit", [None, 6])
def test_texts_together_have_the_tokens_that_each_has_by_itself(folder, limit):
    tokens = Tokens({path.name: path.read_bytes() for path in folder.glob("tokenizer*.json")})
    if limit:
        tokens.truncate(limit)
    texts = [["the cat sat"], ["\u4e2d\u6587 \u2603 a\u0301"], ["a", "pair"], ["", "b"], ["[MASK] <mask> </s>"], [""]]
    texts.append(["night and water " * 9])
    origins = [f"input {number}" for number in range(len(texts))]
    assert tokens.encode_all(texts, origins) == [tokens.encode(one, origin) for one, origin in zip(texts, origins)]


def test_a_text_among_others_that_is_none_is_named():
    tokens = Tokens({"tokenizer.json": word_piece_json([*SPECIALS, "a"])})
    with pytest.raises(InputError, match="^second holds .*half a character"):
        tokens.encode_all([["a"], ["\ud800"], ["\udc00"]], ["first", "second", "third"])
