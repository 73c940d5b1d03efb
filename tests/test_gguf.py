"""GGUF files: what is in them, and hostile ones."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import gguf

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.ggml import TYPES
from hepti_mpi.models.checkpoints.gguf import GgufFile
from hepti_mpi.models.checkpoints.ggufmodel import GgufModel, llama3_factors
from hepti_mpi.models.checkpoints.gguftokens import gguf_tokens
from hepti_mpi.models.families.registry import FAMILIES
from hepti_mpi.models.inputs.chat import ChatTemplate
from hepti_mpi.models.inputs.tokens import Tokens

NUMBERS = np.arange(64, dtype=np.float32).reshape(2, 32)
LLAMA = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64, "llama.embedding_length": 32,
    "llama.feed_forward_length": 64, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 1e4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


@pytest.fixture
def opened(tmp_path):
    def opened(content):
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        return GgufFile(path)

    return opened


def half(value):
    return np.float16(value).tobytes()


# what a block stands for, worked out by hand from its description in ggml-common.h
BLOCKS = {
    2: (half(0.5) + bytes([0x3A] * 16), [(10 - 8) * 0.5] * 16 + [(3 - 8) * 0.5] * 16),
    3: (half(0.5) + half(-1) + bytes([0x3A] * 16), [10 * 0.5 - 1] * 16 + [3 * 0.5 - 1] * 16),
    6: (half(0.5) + bytes([1, 0, 2, 0]) + bytes([0x3A] * 16), [5.0] + [-3.0] * 15 + [-6.5, 1.5 - 0.0] + [-6.5] * 14),
    7: (half(0.5) + half(-1) + bytes([1, 0, 2, 0]) + bytes([0x3A] * 16), [12.0] + [4.0] * 15 + [0.5, 8.5] + [0.5] * 14),
    8: (half(0.25) + bytes(range(246, 256)) + bytes(22), [0.25 * (number - 10) for number in range(10)] + [0.0] * 22),
    12: (half(2) + half(1) + bytes([1] * 4 + [3] * 4 + [0x21] * 4) + bytes([0x52] * 128),
         ([2 * 1 * 2 - 3] * 32 + [2 * 5 - 3] * 32) * 2
         + ([2 * 1 * 2 - 2] * 32 + [2 * 5 - 2] * 32) * 2),
    13: (half(2) + half(1) + bytes([1] * 4 + [3] * 4 + [0x21] * 4) + bytes([1] * 32) + bytes([0x52] * 128),
         [2 * 18 - 3] * 32 + [2 * 5 - 3] * 32
         + [2 * 2 - 3] * 32 + [2 * 5 - 3] * 32 + ([2 * 2 - 2] * 32 + [2 * 5 - 2] * 32) * 2),
    14: (bytes([0x52] * 128) + bytes([0x1B] * 64) + bytes([1] * 8 + [255] * 8) + half(2),
         [2 * (2 + 48 - 32)] * 32 + [2 * (2 + 32 - 32)] * 32
         + [2 * (5 + 16 - 32)] * 32 + [2 * (5 - 32)] * 32 + [-2 * 18] * 32 + [-2 * 2] * 32 + [2 * 11] * 32 + [2 * 27] * 32),
    30: (np.array([1.5], "<f4").tobytes()[2:], [1.5]),
    1: (half(1.5), [1.5]),
    0: (np.array([1.5], "<f4").tobytes(), [1.5]),
}  # fmt: skip


@pytest.mark.parametrize("number", TYPES)
def test_what_blocks_stand_for(opened, number):
    content, values = BLOCKS[number]
    assert len(content) == TYPES[number].bytes
    file = opened(gguf({}, {"w": (number, (2, len(values)), content * 2)}))
    assert file.read("w").tolist() == [values] * 2 and file.read("w").dtype == np.float32


def test_metadata(opened):
    said = {"a": "é", "b": 7, "c": 0.5, "d": True, "e": ["x", "yz"], "f": [1, 2], "general.alignment": 64}
    file = opened(gguf(said, {"one": NUMBERS, "two": NUMBERS.T}, align=64))
    assert {**file.metadata, "f": list(file.metadata["f"])} == said
    assert file.shapes == {"one": (2, 32), "two": (32, 2)} and (file.read("two") == NUMBERS.T).all() and file.kinds == {"F32": 2}


WHOLE = gguf({"a": "b", "c": ["x", "y"], "d": [1, 2]}, {"w": NUMBERS})


def test_every_cut_is_seen(opened):
    for size in range(1, len(WHOLE) - 1):
        with pytest.raises(ModelError, match="not a sound GGUF file"):
            opened(WHOLE[:size])


def test_every_changed_byte_is_read_or_refused(opened):
    for place in range(len(WHOLE) - NUMBERS.nbytes):
        for other in (0, 0x7F, 0xFF):
            changed = WHOLE[:place] + bytes([other]) + WHOLE[place + 1 :]
            try:
                file = opened(changed)
                for name in file.shapes:
                    file.read(name)
            except ModelError:
                pass


@pytest.mark.parametrize("content, words", [
    (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors, the limit"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "keys, the limit"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "the limit"),
    (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 61), "the limit"),
    (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 61), "the limit"),
    (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1), "not read"),
    (gguf({}, {"w": (10, (1, 256), bytes(84))}), "Q2_K; supported"),
    (gguf({}, {"w": (2, (2, 33), bytes(84))}), "blocks are of 32"),
    (gguf({}, {"w": (0, (1 << 30, 1 << 30), bytes(84))}), "cannot be"),
    (gguf({}, {"w": (0, (1 << 20, 4), bytes(84))}), "truncated"),
    (gguf({"general.alignment": 3}, {}), "power of two"),
    (b"\x89HDF" + bytes(99), "begin with GGUF"),
    (b"", "not a sound"),
])  # fmt: skip
def test_hostile_files(opened, content, words):
    with pytest.raises(ModelError, match=words):
        opened(content)


def test_values_that_are_no_numbers(opened):
    with pytest.raises(ModelError, match="1 value not finite"):
        opened(gguf({}, {"w": np.array([1, np.inf], np.float32)})).read("w")


# ---- what a model is called


def model(opened, more=(), tensors=()):
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (48, 32), "output_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32)}
    every = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | dict(tensors)
    return GgufModel(opened(gguf(LLAMA | dict(more), every)))


def test_a_llama(opened):
    found = model(opened)
    assert found.config["head_dim"] == 8 and found.config["tie_word_embeddings"] and found.config["vocab_size"] == 48
    assert found.config["rms_norm_eps"] == 1e-5 and found.config["rope_scaling"] is None
    own, plain = found.file.read("blk.0.attn_k.weight"), found.read("model.layers.0.self_attn.k_proj.weight")
    # llama.cpp's converter puts row i of the first half of a head, and row i of its second half, beside each other
    again = plain.reshape(2, 2, 4, 32).swapaxes(1, 2).reshape(16, 32)
    assert (again == own).all() and (plain[1] == own[2]).all() and (plain[4] == own[1]).all()


def test_scaled_positions(opened):
    said = {"factor": 32.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
    factors = llama3_factors(8, 5e5, said)
    found = model(opened, {"llama.rope.freq_base": 5e5}, {"rope_freqs.weight": factors.astype(np.float32)})
    assert found.config["rope_scaling"]["factor"] == 32 and found.config["rope_scaling"]["rope_type"] == "llama3"
    assert model(opened, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}).config["rope_scaling"]["factor"] == 4
    with pytest.raises(ModelError, match="not those of Llama 3"):
        model(opened, tensors={"rope_freqs.weight": factors.astype(np.float32)[::-1] + 1})
    with pytest.raises(ModelError, match="longrope"):
        model(opened, {"llama.rope.scaling.type": "longrope"})


def test_positions_that_turn_a_part_of_a_head(opened):
    """transformers 5.23 turns all of a Llama's head, whatever the file says, llama.cpp the part."""
    with pytest.raises(ModelError, match="partial_rotary_factor is 0.5, which is not supported"):
        FAMILIES["llama"].fields(model(opened, {"llama.rope.dimension_count": 4}).config)


@pytest.mark.parametrize("more, tensors, words", [
    ({"llama.expert_count": 8}, {}, "mixture of experts"),
    ({"llama.rope.magic": 8}, {}, "not known"),
    ({"general.architecture": "mamba"}, {}, "supported: llama"),
    ({"llama.attention.head_count": [4, 2]}, {}, "one positive integer"),
    ({"llama.block_count": 0}, {}, "one positive integer"),
    ({}, {"blk.0.ssm.weight": NUMBERS}, "does not belong"), ({"split.count": 3, "split.no": 0}, {}, "is one of 3 parts"),
])  # fmt: skip
def test_models_that_are_refused(opened, more, tensors, words):
    with pytest.raises(ModelError, match=words):
        model(opened, more, tensors)


# ---- tokens

LETTERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh123Ġ", "ab", "Ġab", "Ġc"]
AB = LETTERS.index("ab")
TOKENS = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": LETTERS, "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.merges": ["a b", "Ġ ab", "Ġ c"], "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip


def tokens(**more):
    types = np.array([3] * 3 + [1] * (len(LETTERS) - 3))
    return gguf_tokens(TOKENS | {"tokenizer.ggml.token_type": types} | {f"tokenizer.ggml.{key}": one for key, one in more.items()})


def test_templates_of_a_file():
    """The one for talks with tools counts there, as in llama.cpp; what is no template is refused before anybody talks."""
    found = gguf_tokens(TOKENS | {"tokenizer.chat_template.tool_use": "tools {{ tools }}", "tokenizer.chat_template.rag": "x"}).files
    template = ChatTemplate.of(found)
    assert template.text([{"role": "user", "content": "a"}], tools=[1]) == "tools [1]"
    assert template.text([{"role": "user", "content": "a"}]) == "[{'role': 'user', 'content': 'a'}]"
    for value, words in (("{{ nope", "cannot be read"), (3, "expected a text")):
        with pytest.raises(ModelError, match=words):
            gguf_tokens(TOKENS | {"tokenizer.chat_template": value})


@pytest.mark.parametrize("types", [[1] * len(LETTERS), [4] * len(LETTERS), None])
def test_what_ends_an_answer_whatever_its_type(types):
    """As in llama.cpp, where it is a control token; Llama 3 ends at <|end_of_text|> as well as at the eos of its talks."""
    said = TOKENS | {"tokenizer.ggml.tokens": [*LETTERS, "<|end_of_text|>"]}
    made = gguf_tokens(said | ({} if types is None else {"tokenizer.ggml.token_type": np.array([*types, 1])}))
    assert made.ends == (2, 0, len(LETTERS)) and Tokens(made.files).plain("ab<|im_end|>", "x")[-1] == 2


@pytest.mark.parametrize("kind, ends", [(4, False), (3, True), (1, True)])
def test_a_tag_of_html_ends_no_answer(kind, ends):
    """Gemma's vocabulary has the tags as its user's tokens, and ends at <end_of_turn>."""
    said = TOKENS | {"tokenizer.ggml.tokens": [*LETTERS, "</s>"], "tokenizer.ggml.token_type": np.array([*[1] * len(LETTERS), kind])}
    made = gguf_tokens(said)
    assert (len(LETTERS) in made.ends) == ends and Tokens(made.files).plain("</s>", "x") == [len(LETTERS)]
    eos = gguf_tokens(said | {"tokenizer.ggml.eos_token_id": len(LETTERS)})
    assert len(LETTERS) in eos.ends


def test_a_tokenizer():
    made = tokens()
    words = Tokens(made.files)
    ids = words.plain("ab ab 12<|im_end|>c", "x")
    assert [LETTERS[one] for one in ids] == ["ab", "Ġab", "Ġ", "1", "2", "<|im_end|>", "c"]
    assert words.decode(ids) == "ab ab 12c" and made.ends == (2, 0)
    assert made.files["chat_template.jinja"] == b"{{ messages }}"


def test_a_tokenizer_beside_the_file_has_to_be_of_its_model():
    """Files of several models lie in one folder; a tokenizer of another one would make other texts of all."""
    own = tokens().files["tokenizer.json"]
    assert gguf_tokens(TOKENS | {"tokenizer.ggml.pre": "unheard of"}, own).files["tokenizer.json"] == own
    changed = json.loads(own)
    vocabulary = changed["model"]["vocab"]
    a, b = LETTERS.index("a"), LETTERS.index("b")
    vocabulary |= {"a": b, "b": a}
    for other, words in ((json.dumps(changed).encode(), f"token {min(a, b)} .* of another model"), (b"{", "cannot be used")):
        with pytest.raises(ModelError, match=words):
            gguf_tokens(TOKENS, other)


def test_keys_that_count_only_here_and_there():
    harmless = {"normalizer.lowercase": False, "suppress_tokens": np.zeros(0, np.int64), "add_sep_token": True, "fim_pre_token_id": 3}
    assert tokens(**harmless) == tokens()
    assert tokens(eos_token_ids=np.array([2, 5, 1])).ends == (2, 5, 1, 0)  # 0 by its text
    composed, apart = (Tokens(tokens(**more).files).encode(["e\u0301"], "x").ids for more in ({"normalizer.nfc": True}, {}))
    assert composed == Tokens(tokens().files).encode(["\u00e9"], "x").ids != apart
    own = tokens().files["tokenizer.json"]  # beside the file: then what the file says of texts does not count
    more = {"tokenizer.ggml.normalizer.lowercase": True, "tokenizer.ggml.of_tomorrow": 1}
    assert gguf_tokens(TOKENS | more, own).files["tokenizer.json"] == own
    with pytest.raises(ModelError, match="suppress_tokens"):
        gguf_tokens(TOKENS | {"tokenizer.ggml.suppress_tokens": np.array([3])}, own)


@pytest.mark.parametrize("more, ids", [
    ({}, [AB]), ({"add_bos_token": True}, [1, AB]), ({"add_eos_token": True}, [AB, 2]),
    ({"pre": "llama-bpe"}, [1, AB]),  # llama.cpp: as its rule says, where the file says nothing
    ({"pre": "llama-bpe", "add_bos_token": False}, [AB]),
])  # fmt: skip
def test_what_texts_begin_and_end_with(more, ids):
    assert Tokens(tokens(**more).files).encode(["ab"], "x").ids == ids


@pytest.mark.parametrize("more, words", [
    ({"pre": "other"}, "beside the file"), ({"model": "t5"}, "beside the file"), ({"model": "llama"}, "no tokenizer.ggml.scores"),
    ({"merges": ["a zz"]}, "cannot be made"), ({"token_type": np.ones(3)}, "token_type is 3 values"),
    ({"token_type": "x"}, "token_type is x"),
    ({"eos_token_id": 99}, "vocabulary has"), ({"add_eos_token": 1}, "true or false"),
    ({"add_bos_token": True, "bos_token_id": -1}, "has no tokenizer.ggml.bos_token_id"), ({"tokens": 3}, "no tokenizer.ggml.tokens"),
    ({"suppress_tokens": np.array([3])}, "suppress_tokens is \\[3\\], which is not supported: the choice of tokens"),
    ({"normalizer.lowercase": True}, "cut into other tokens; put the model's"), ({"escape_whitespaces": False}, "cut into other tokens"),
    ({"normalizer.nfc": 1}, "nfc is 1, expected true"), ({"normalizer": "nfc"}, "'tokenizer.ggml.normalizer' is in no list"),
    ({"eos_token_ids": np.array([2, 99])}, "eos_token_ids is .* 99., expected"), ({"eos_token_ids": 2}, "eos_token_ids is 2, expected"),
])  # fmt: skip
def test_tokenizers_that_are_refused(more, words):
    with pytest.raises(ModelError, match=words):
        tokens(**more)


PIECES = json.loads((Path(__file__).parent / "golden" / "pieces.json").read_text())


def pieces(case, architecture="llama", **more):
    said = PIECES[case]
    values = {"model": "llama", "tokens": said["tokens"], "scores": np.array(said["scores"], np.float32)}
    values |= {"bos_token_id": 1, "eos_token_id": 2, "token_type": np.array(said["token_type"]), "add_space_prefix": case == "llama"} | more
    keys = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    return gguf_tokens(keys | {"general.architecture": architecture})


@pytest.mark.parametrize("case", ["llama", "gemma"])
def test_pieces_as_sentencepiece_cuts_texts(case):
    words = Tokens(pieces(case).files)
    for text, ids in PIECES[case]["texts"]:
        assert words.plain(text, "x") == ids, text
        assert words.decode(ids) == text.replace("▁", " ")  # which are one to SentencePiece
    assert words.encode(["ranks"], "x").ids == [1, *words.plain("ranks", "x")]


@pytest.mark.parametrize("architecture, strips", [("phi3", True), ("llama", False)])
def test_what_follows_the_tokens_of_a_talk(architecture, strips):
    """As transformers reads Phi-3's own tokenizer, whose tokens take what is blank behind them; no key of a GGUF file says so."""
    named, said = ["<|user|>", "<|end|>", "<|endoftext|>"], PIECES["llama"]
    every, types = [*said["tokens"], *named], np.array([*said["token_type"], 3, 4, 3])
    more = {"tokens": every, "scores": np.zeros(len(every)), "token_type": types}
    words = Tokens(pieces("llama", architecture=architecture, **more).files)
    user, end, over = range(len(said["tokens"]), len(said["tokens"]) + len(named))
    blank, lines = (words.plain(text, "x") for text in (" ", "\n  x"))
    x = words.plain("x", "x")
    assert words.plain("<|user|>\n  x<|end|>\n", "x") == ([user, *x, end] if strips else [user, *lines, end, *words.plain("\n", "x")])
    for kept, number in (("<s>", 1), ("<unk>", 0), ("<|endoftext|>", over)):
        assert words.plain(f"{kept} ", "x") == [number, *blank]


@pytest.mark.parametrize("more, words", [
    ({"scores": None}, "no tokenizer.ggml.scores"), ({"scores": np.zeros(3, np.float32)}, "no tokenizer.ggml.scores"),
    ({"add_space_prefix": 1}, "true or false"), ({"token_type": np.ones(520)}, "no tokens for bytes"),
    ({"tokens": [*PIECES["llama"]["tokens"][:-1], "x" * (1 << 22)]}, "4194304 characters, the limit is 1024"),  # each a place to cut at
])  # fmt: skip
def test_pieces_that_are_refused(more, words):
    with pytest.raises(ModelError, match=words):
        pieces("llama", **more)
