"""The tokenizer files of a folder, against what AutoTokenizer of transformers makes of them."""

import json
import shutil
from pathlib import Path

import pytest
from decoders import write_folder

from hepti_mpi.comm.interrupts import Interrupted
from hepti_mpi.errors import InputError, ModelError
from hepti_mpi.models import sidefiles
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.tokenizerclasses import KINDS, tokenizer_kind
from hepti_mpi.models.checkpoints.tokenizing import FILES, build_tokenizer, number_of, run_settings
from hepti_mpi.models.families.registry import FAMILIES
from hepti_mpi.models.inputs.tokens import Tokens, guarded

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizers.json").read_text(encoding="utf-8"))


def built(changes):
    """What is made of the golden folder with these changes: file -> keys to set, None, or a whole text."""
    files = dict(GOLDEN["base"])
    for name, change in changes.items():
        if change is None:
            del files[name]
        else:
            files[name] = change if isinstance(change, str) else files.get(name, {}) | change
    data = {name: (value if isinstance(value, str) else json.dumps(value)).encode() for name, value in files.items() if name in FILES}
    return build_tokenizer(data, files["config.json"].get("tokenizer_class"))


def said(case):
    return str(case["changes"])[:70]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=said)
def test_golden_tokens(case):
    made = built(case["changes"])
    assert sorted(made.files) == ["tokenizer.json", "tokenizer_config.json"]
    tokens = Tokens(made.files)
    found = [tokens.encode([text], "a line") for text in GOLDEN["texts"]] + [tokens.encode(GOLDEN["texts"][:2], "a pair")]
    assert [one.ids for one in found] == case["ids"]
    assert [one.types for one in found] == case["types"]
    assert case["mask"] is None or tokens.mask_token == case["mask"]
    tokens.truncate(6)
    assert [tokens.encode([text], "a line").ids for text in GOLDEN["texts"]] == case["short"]


def test_what_was_made_makes_itself_again():
    made = built({"added_tokens.json": {"Newword": len(GOLDEN["base"]["tokenizer.json"]["model"]["vocab"])}})
    assert Tokens(made.files).encode(["hello Newword"], "a line").ids == Tokens(dict(made.files)).encode(["hello Newword"], "x").ids
    assert made.special == frozenset(range(5))
    assert built({"tokenizer.json": None}).files == {}  # the model takes no text


CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
REFUSED = [
    ({CONFIG: {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}}, "'BertJapaneseTokenizer' is not supported"),
    ({CONFIG: {"tokenizer_class": 3}}, "tokenizer_class is 3, expected a name"),
    ({CONFIG: {"tokenizer_class": 0}}, "tokenizer_class is 0, expected a name"),
    ({"tokenizer.json": {"model": {"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []}}}, "dropout of the model is 0.1"),
    ({"config.json": {"tokenizer_class": "RobertaTokenizer"}, CONFIG: {"tokenizer_class": None}},
     "tokenizer.json holds a WordPiece model, RobertaTokenizer is for BPE"),
    ({CONFIG: {"tokenizer_class": "XLMRobertaTokenizer"}}, "tokenizer.json holds a WordPiece model, XLMRobertaTokenizer is for Unigram"),
    ({CONFIG: {"tokenizer_class": "TokenizersBackend"}, "tokenizer.json": None, "vocab.txt": "a\n"}, "needs a tokenizer.json; load"),
    ({CONFIG: {"tokenizer_class": "RobertaTokenizer"}, "tokenizer.json": None, "merges.txt": "a b\n"},
     "RobertaTokenizer needs a tokenizer.json, or vocab.json and merges.txt; load"),
    ({CONFIG: {"tokenizer_class": "RobertaTokenizer"}, "tokenizer.json": None, "vocab.json": {"a": 0}, "merges.txt": "a b c\n"},
     "the tokenizer cannot be made of its files"),
    ({CONFIG: {"tokenizer_class": "RobertaTokenizer", "sep_token": None}, "tokenizer.json": None, "vocab.json": {"a": 0},
      "merges.txt": ""}, "sep_token is null"),
    ({CONFIG: {"auto_map": {"AutoTokenizer": ["x.Y", None]}}}, "auto_map is .*: it names code of the folder, which is never run"),
    ({CONFIG: {"fix_mistral_regex": True}}, "fix_mistral_regex is True, .*: it splits texts by another rule"),
    ({CONFIG: {"trust_remote_code": True}}, "trust_remote_code is True, by which transformers takes tokenizer.json as it is, whatever"),
    ({CONFIG: {"model_specific_special_tokens": ["<img>"]}}, "model_specific_special_tokens is .*, expected an object of tokens"),
    ({CONFIG: {"model_specific_special_tokens": {"mask_token": "<img>"}}}, "expected an object of tokens without keys of their own"),
    ({CONFIG: {"model_specific_special_tokens": {"a_token": 3}}}, "a_token is 3, expected a token"),
    ({CONFIG: {"word_tokenizer_type": "mecab"}}, "'word_tokenizer_type' is in no list of what this file may say"),
    ({CONFIG: {"do_lower_case": "no"}}, "do_lower_case is 'no', expected true or false"),
    ({CONFIG: {"add_prefix_space": 1}}, "add_prefix_space is 1, expected true or false"),
    ({"added_tokens.json": {"<new>": 3}}, "the number 3 is that of the added token '<new>' in added_tokens.json and of '\\[SEP\\]' in tok"),
    ({CONFIG: {"eos_token": "<new>", "additional_special_tokens": [{"content": "<new>", "single_word": True, "__type": "AddedToken"}]}},
     "the added token '<new>' is named twice, and not alike"),
    ({"added_tokens.json": {"[MASK]": 3}}, "'\\[MASK\\]' has the number 3 in added_tokens.json and 4 in tokenizer.json: which is meant?"),
    ({CONFIG: {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"5": {"content": "[MASK]"}}}},
     "'\\[MASK\\]' has the number 5 in added_tokens_decoder of tokenizer_config.json and 4 in tokenizer.json: which is meant?"),
    ({CONFIG: {"added_tokens_decoder": {"900": {"content": "Covid", "normalized": True}, "901": {"content": "covid", "normalized": True}}}},
     "the added tokens 'Covid' and 'covid' are one after normalising"),
    ({CONFIG: {"truncation_side": "middle"}}, "truncation_side is 'middle', expected left or right"),
    ({CONFIG: {"model_max_length": "7"}}, "model_max_length is '7', expected a number"),
    ({CONFIG: {"split_special_tokens": 1}}, "split_special_tokens is 1, expected true or false"),
    ({CONFIG: {"model_input_names": ["pixel_values"]}}, "model_input_names is"),
    ({CONFIG: {"sep_token": None}}, "sep_token is null, a tokenizer of this class needs one"),
    ({CONFIG: {"mask_token": {"content": "[MASK]"}}}, "mask_token is .*, expected a token"),
    ({CONFIG: {"extra_special_tokens": "a"}}, "expected a list of tokens"),
    ({CONFIG: {"added_tokens_decoder": {"x": {"content": "y"}}}}, "an added token has the number 'x'"),
    ({CONFIG: {"added_tokens_decoder": {"7": {}}}}, "which has no content"),
    ({CONFIG: {"added_tokens_decoder": {"7": {"content": "y", "lstrip": "x"}}}}, "added token 'y' cannot be used"),
    ({CONFIG: {"added_tokens_decoder": [3]}}, "is no object of tokens"),
    ({MAP: {"do_lower_case": False}}, "special_tokens_map.json: 'do_lower_case' is in no list"),
    ({MAP: {"add_bos_token": True}}, "special_tokens_map.json: add_bos_token is True, .*: what is put around texts has to be in"),
    ({MAP: {"add_eos_token": False}}, "special_tokens_map.json: add_eos_token is False, .*: what is put around texts has to be in"),
    ({"added_tokens.json": {"y": None}}, "an added token has the number None"),
]


@pytest.mark.parametrize("changes, words", REFUSED, ids=lambda value: str(value)[:60])
def test_refused(changes, words):
    with pytest.raises(ModelError, match=words) as caught:
        built(changes)
    assert "\n" not in str(caught.value) and not str(caught.value).endswith(".")


@pytest.mark.parametrize("changes", [
    {CONFIG: {"trust_remote_code": False}}, {CONFIG: {"trust_remote_code": True, "tokenizer_class": "TokenizersBackend"}},
    {CONFIG: {"trust_remote_code": True}, "tokenizer.json": None, "vocab.txt": "[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n"},
])  # fmt: skip
def test_trust_counts_where_a_class_makes_another_tokenizer_than_its_file(changes):
    """As transformers 5.23, whose XLM-R tokenizers keep a double blank of a text with it and not without."""
    assert built(changes).files


WHOLE, MASKED = [2, 69, 85, 4, 77, 69, 1, 17, 1, 88, 3, 28, 3], [2, 69, 85, 1, 17, 31, 49, 41, 1, 77, 69, 1, 17, 1, 88, 3, 28, 3]
APART = [2, 69, 85, 1, 17, 31, 49, 41, 1, 77, 69, 1, 17, 1, 88, 1, 23, 35, 46, 1, 28, 3]
MARKS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.mark.parametrize("said, is_special, mask, ids", [  # as AutoTokenizer of transformers 5.23 does
    ({}, True, None, APART), ({}, False, None, WHOLE), (MARKS, True, None, APART),
    (MARKS, False, None, [2, 69, 85, 4, 77, 69, 1, 17, 1, 88, 1, 23, 35, 46, 1, 28, 3]),
    ({"mask_token": "[MASK]"}, True, 4, APART), ({"mask_token": "[MASK]"}, False, 4, MASKED), ({"mask_token": None}, True, None, APART),
])  # fmt: skip
def test_special_tokens_that_are_split(said, is_special, mask, ids):
    """Only those are special that the settings name or tokenizer.json calls so; without a named one there is no mask."""
    folder = Path(__file__).parent / "golden" / "bert_mlm"
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"] = [token | {"special": is_special} for token in document["added_tokens"]]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True} | said
    tokens = Tokens(build_tokenizer({"tokenizer.json": json.dumps(document).encode(), CONFIG: json.dumps(settings).encode()}, None).files)
    assert tokens.mask_id == mask and tokens.encode(["the cat [MASK] on the [M] mat [SEP] x"], "x").ids == ids


def test_an_empty_second_text_still_has_its_mark():
    """As batches of transformers 5.23 and CrossEncoder.predict of sentence-transformers 6.2 have it: [CLS] a [SEP] [SEP]."""
    tokens = Tokens(built({}).files)
    first, last = tokens.encode(["hello"], "x").ids[:-1], tokens.encode([""], "x").ids[-1]
    assert tokens.encode(["hello", ""], "x").ids == [*first, last, last] and tokens.encode(["hello"], "x").ids == [*first, last]


def test_null_is_the_default_of_a_switch():
    for name in ("BertTokenizer", "MPNetTokenizer"):
        said = {"tokenizer_class": name, "cls_token": "[CLS]", "sep_token": "[SEP]"}
        nothing = said | dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"))
        found = [Tokens(built({CONFIG: one}).files).encode(["Hello Café"], "x").ids for one in (said, nothing)]
        assert found[0] == found[1]


def test_a_padding_of_tokenizer_json_names_no_token_of_gpt2():
    """As AutoTokenizer of transformers 5.23: GPT2Tokenizer has no pad token unless its settings say so; others take it."""
    bytewise = next(case["changes"]["tokenizer.json"] for case in GOLDEN["cases"]
                    if (case["changes"].get(CONFIG) or {}).get("tokenizer_class") == "GPT2Tokenizer")  # fmt: skip
    padding = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0}
    padding["pad_token"] = "<pad>"
    for name, wanted in (("GPT2Tokenizer", None), ("PreTrainedTokenizerFast", "<pad>")):
        made = built({"tokenizer.json": bytewise | {"padding": padding}, CONFIG: {"tokenizer_class": name, "mask_token": None}})
        assert made.marks.get("pad_token") == wanted


def test_settings_that_go_before():
    data = {name: json.dumps(value).encode() for name, value in GOLDEN["base"].items() if name in FILES}
    made = build_tokenizer(data, None, {"do_lower_case": False, "model_max_length": 7})
    cased = Tokens(built({CONFIG: {"do_lower_case": False}}).files)
    assert Tokens(made.files).encode(["Hello"], "x").ids == cased.encode(["Hello"], "x").ids
    assert json.loads(made.files[CONFIG])["model_max_length"] == 7


def test_a_processor_is_sentence_transformers_alone_to_load():
    """AutoTokenizer makes nothing of the name, which Gemma 3's text models have."""
    data = {name: json.dumps(value).encode() for name, value in GOLDEN["base"].items() if name in FILES}
    data[CONFIG] = json.dumps(json.loads(data[CONFIG]) | {"processor_class": "CLIPProcessor"}).encode()
    assert build_tokenizer(data, None).files == build_tokenizer(data | {CONFIG: json.dumps(GOLDEN["base"][CONFIG]).encode()}, None).files
    with pytest.raises(ModelError, match="processor_class is 'CLIPProcessor', which sentence-transformers would load"):
        build_tokenizer(data, None, {})


IMAGE, USER = {"image_token": "<img>"}, {"user_token": "hello"}
NAMED_TOKENS = [  # what transformers 5.23 makes of a text: <img> and hello are tokens, or not
    ({"model_specific_special_tokens": IMAGE | USER}, [2, 126, 124, 130, 8, 74, 66, 118, 25, 119, 4, 3]),
    ({"model_specific_special_tokens": IMAGE, "user_token": "<u>"}, [2, 126, 124, 118, 13, 72, 66, 119, 8, 74, 66, 130, 4, 3]),
    ({"model_specific_special_tokens": IMAGE, "extra_special_tokens": {"user_token": "<u>"}},
     [2, 126, 124, 118, 13, 72, 66, 119, 8, 74, 66, 130, 4, 3]),
    ({"model_specific_special_tokens": IMAGE, "extra_special_tokens": ["<u>"]}, [2, 126, 124, 130, 8, 74, 66, 131, 4, 3]),
]  # fmt: skip


@pytest.mark.parametrize("changes, ids", NAMED_TOKENS, ids=str)
def test_tokens_that_transformers_5_writes_by_name(changes, ids):
    """They count where no others of a name are there: without it a Gemma 3 that it saved was refused."""
    found = Tokens(built({CONFIG: changes}).files).encode(["the hello <img> dog <u> [MASK]"], "a line").ids
    assert found == ids


# ---- the list


def test_every_key_of_the_list_has_one_verdict():
    for name, table in sidefiles.FILES.items():
        assert table, name
        for key, found in table.items():
            assert found.kind in (sidefiles.HONOURED, sidefiles.WITHOUT, sidefiles.REFUSED), key
            assert bool(found.reason) == (found.kind == sidefiles.REFUSED), key


def test_keys_are_looked_up_by_name_then_by_pattern():
    table = sidefiles.honoured("*_token") | sidefiles.without("add_bos_token *_file") | sidefiles.refused("code", "it is never run")
    found = [sidefiles.verdict(table, key).kind for key in ("x_token", "add_bos_token", "vocab_file")]
    assert found == ["honoured", "without influence", "without influence"]
    sidefiles.check("a.json", {"code": None, "x_token": 3}, table)
    with pytest.raises(ModelError, match="^a.json: code is 'x', which is not supported: it is never run$"):
        sidefiles.check("a.json", {"code": "x"}, table)
    with pytest.raises(ModelError, match="^a.json: 'odd key' is in no list of what this file may say: "):
        sidefiles.check("a.json", {"odd key": 1}, table)


@pytest.mark.parametrize("family, name, kind", [  # as AutoTokenizer of transformers 5.23 chooses where a file names `name`
    ("llama", None, "TokenizersBackend"), ("llama", "LlamaTokenizer", "LlamaTokenizer"), ("mistral", "LlamaTokenizer", "TokenizersBackend"),
    ("phi3", "LlamaTokenizerFast", "TokenizersBackend"), ("qwen2", "PreTrainedTokenizerFast", "Qwen2Tokenizer"),
    ("qwen3", None, "Qwen2Tokenizer"), ("qwen3", "PreTrainedTokenizerFast", "TokenizersBackend"), ("gpt2", None, "GPT2Tokenizer"),
    ("gpt_neox", None, "GPTNeoXTokenizer"), ("gemma2", None, "GemmaTokenizer"), ("gemma3_text", "GemmaTokenizerFast", "GemmaTokenizer"),
])  # fmt: skip
def test_the_class_of_a_family(family, name, kind):
    said = FAMILIES[family]
    pieces = next(case for case in GOLDEN["cases"] if (case["changes"].get(CONFIG) or {}).get("tokenizer_class") == "LlamaTokenizer")
    files = {"tokenizer.json": json.dumps(pieces["changes"]["tokenizer.json"]).encode()}
    chosen = tokenizer_kind((said.other_tokenizers and name) or said.tokenizer, files)
    assert chosen is KINDS[kind]


def test_llama_3_is_left_as_it_is():
    assert tokenizer_kind("LlamaTokenizer", {"tokenizer.json": b'{"decoder": {"type": "ByteLevel"}}'}) is KINDS["TokenizersBackend"]


def test_tokens_become_text_again():
    """Whatever class reads them: a model that writes may have any."""
    for case in GOLDEN["cases"]:
        name = (case["changes"].get(CONFIG) or {}).get("tokenizer_class", "")
        if name in KINDS and name not in ("PreTrainedTokenizerFast", "MPNetTokenizer"):
            tokens = Tokens(built(case["changes"]).files)
            text = tokens.decode(tokens.encode(["the cat"], "x").ids)
            assert text.replace(" ", "") == "thecat", name


def test_kinds_are_named_without_fast():
    assert not [name for name in KINDS if name.endswith("Fast") and name != "PreTrainedTokenizerFast"]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), None, "x", []])
def test_a_token_whose_number_is_none_is_refused(value):
    with pytest.raises(ModelError, match="an added token has the number"):
        number_of(value)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_token_that_tokenizer_json_has_as_special_stays_so(name):
    """As in transformers 5.23, where added_tokens_decoder says the opposite of it: the library remembers what it was first."""
    first = GOLDEN["base"]["tokenizer.json"]["added_tokens"][0]
    assert first["special"]
    changes = {CONFIG: {"tokenizer_class": name, "added_tokens_decoder": {str(first["id"]): first | {"special": False}}}}
    assert Tokens(built(changes).files).decode([first["id"]]) == ""


class PanicException(BaseException):
    """As the Rust library's is called."""


@pytest.mark.parametrize("reason, expected", [
    (ValueError("no"), InputError), (PanicException("no"), InputError), (Interrupted(), Interrupted), (SystemExit(3), SystemExit),
    (KeyboardInterrupt(), KeyboardInterrupt), (MemoryError(), MemoryError),
])  # fmt: skip
def test_who_ends_the_program_is_no_fault_of_a_text(reason, expected):
    """Ctrl-C during a call of the library was an error of that text, and noted in the journal as its answer."""
    with pytest.raises(expected):
        guarded(lambda: (_ for _ in ()).throw(reason), InputError("line 1 cannot be tokenised"))


def test_classes_pad_where_transformers_has_them():
    """Llama's and Gemma's pad in front where no file says: beside a longer text a BERT with such a tokenizer answered otherwise."""
    sides = {name: [json.loads(run_settings(said, kind))["padding_side"] for said in ({}, {"padding_side": "right"})]
             for name, kind in KINDS.items()}  # fmt: skip
    assert {name for name, side in sides.items() if side == ["left", "right"]} == {"LlamaTokenizer", "GemmaTokenizer"}
    assert all(side in (["left", "right"], ["right", "right"]) for side in sides.values())


def test_a_name_that_a_token_has_twice():
    """Of special_tokens_map.json an object of names goes before the names beside it: the other token is none, whatever the class."""
    named = {"foo_token": {"content": "<foo>", "normalized": False}, "extra_special_tokens": {"foo_token": "<bar>"}}
    base = {"vocab.json": json.dumps({"<|endoftext|>": 0, "a": 1}), "merges.txt": "", MAP: json.dumps(named)}
    made = build_tokenizer({name: text.encode() for name, text in base.items()}, "Qwen2Tokenizer")
    assert Tokens(made.files).piece(2) == "<bar>" and b"<foo>" not in made.files["tokenizer.json"]


@pytest.mark.parametrize("first, then, found", [
    (False, False, "xx"), (True, True, "xx x<s>"), (False, True, "xx x<s>"), (True, False, None),
])  # fmt: skip
def test_a_special_token_that_is_normalised_in_one_file_only(first, then, found):
    """transformers 5.23 goes on writing what tokenizer.json normalised it to, and does not take it for special: text was left out."""
    document = GOLDEN["base"]["tokenizer.json"] | {
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "xx": 1}, "unk_token": "<s>"},
        "normalizer": {"type": "Prepend", "prepend": "x"}, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "special": True,
                          "normalized": first}],
    }  # fmt: skip
    stated = {"0": {"content": "<s>", "special": True, "normalized": then}}
    changes = {"tokenizer.json": document, CONFIG: {"tokenizer_class": "TokenizersBackend", "added_tokens_decoder": stated}}
    changes = {name: json.dumps(value) for name, value in changes.items()}
    if found is None:
        with pytest.raises(ModelError, match="token '<s>' is normalised in tokenizer.json, and not in tokenizer_config.json: .*'x<s>'"):
            built(changes)
    else:
        assert Tokens(built(changes).files).decode([1, 0]) == found


@pytest.mark.parametrize("name", ["lowercase", "add_dummy_prefix_space", "tool_parser_type", "chat_template_type", "max_seq_length"])
def test_keys_of_other_programs_say_nothing(name):
    """As MLX's tool_parser_type in many models of texts: transformers keeps and never reads them."""
    assert built({CONFIG: {name: 3, "odd": None}}).files == built({}).files


def test_a_class_that_takes_its_file_as_it_is():
    """ConvBERT's is called as BERT's are, and takes normalizer and the rest of tokenizer.json over: a cased text was another one."""
    for name in ("ConvBertTokenizer", "ConvBertTokenizerFast"):
        with pytest.raises(ModelError, match=f"tokenizer_class '{name}' is not supported"):
            tokenizer_kind(name, {"tokenizer.json": b"{}"})


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "tiktoken.model", "tekken.json"])
def test_another_vocabulary_beside_the_one_of_words(tmp_path, name):
    """Without tokenizer.json transformers takes such a file for the vocabulary, whatever vocab.txt says."""
    folder = Path(shutil.copytree(Path(__file__).parent / "golden" / "bert", tmp_path / "m"))
    words = sorted((vocabulary := json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]), key=vocabulary.get)
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / name).write_text("")
    assert read_model(folder).files["tokenizer.json"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=f"has {name} and no tokenizer.json, so that transformers takes it for the vocabulary; move it"):
        read_model(folder)
    (folder / name).unlink()
    assert read_model(folder).files["tokenizer.json"]


def test_types_that_would_become_words_are_refused(tmp_path):
    """A GPT-2 with BERT's tokenizer, as Chinese ones have: sentence-transformers 6.2 adds the word of each token's type to its row, and
    embeddings without them were off by 0.2; the pipelines of texts leave types out, and so do texts here.
    """
    folder = write_folder("gpt2", tmp_path)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    (folder / CONFIG).write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert read_model(folder).spec.generates
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    modules = [{"name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for at, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="^the tokenizer gives token_type_ids, which this family looks up among its words"):
        read_model(folder)
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    (folder / CONFIG).write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | names))
    assert read_model(folder).spec.head == "sentence"
