#!/usr/bin/env python3
"""Make tokenizers.json and sentences.json: what transformers and sentence-transformers make of folders whose side files were changed.

    python -m venv ref
    ref/bin/pip install torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 safetensors
    ref/bin/python tests/golden/make_texts.py

tokenizers.json: "base", the tokenizer files of a folder; "texts"; and "cases", each with
    changes     file -> keys to set (null: the file is taken away; a text: its whole content)
    ids, types  what AutoTokenizer gives for each text alone, and last for the pair of the first two
    short       ids of each text cut to 6 tokens
    mask        the mask token
sentences.json: "texts" and "cases", each with
    changes     the same for a copy of the folder bert_sentence; "dense" stands for weights made by a formula, see `formula`
    embeddings  what SentenceTransformer(folder).encode gives, 7 digits
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäéü"
WORDS = SPECIALS + list(LETTERS) + ["##" + c for c in LETTERS] + list(".,@<>[]中文") + ["hello", "Hello", "the", "cat", "café", "cafe"]
TEXTS = ["Hello the Café cat", "the@user hello", "中文 hello", "hello Newword, [MASK] [mask]", "<img> newword [UNK]", "a" * 101]
LONG = [f"{'the cat sat on the mat and ' * n}ran" for n in (1, 4)] + ["The [MASK] Rain, slowly!"]


def token(content, **more):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False} | more


def word_piece():
    """A lower-casing tokenizer.json, and the tokenizer_config.json beside it."""
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(SPECIALS)
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64, "mask_token": "[MASK]"}
    return {"config.json": {"model_type": "bert"}, "tokenizer.json": json.loads(made.to_str()), "tokenizer_config.json": config}


def unigram():
    """The tokenizer.json of a multilingual model."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁hello", "▁the", "▁cat", *LETTERS, *".,@<>[]中文", "<mask>"]
    made = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return json.loads(made.to_str())


def tokenizer_cases():
    config, new = "tokenizer_config.json", len(WORDS)
    cased = {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                            "lowercase": False}}
    yield {}
    yield {config: {"do_lower_case": False}}
    yield {"tokenizer.json": cased}
    yield {"tokenizer.json": cased, config: None}
    yield {config: {"strip_accents": False}}
    yield {config: {"tokenize_chinese_chars": False}}
    for name in ("BertTokenizerFast", "PreTrainedTokenizerFast", "DistilBertTokenizer", "ElectraTokenizerFast", "TokenizersBackend"):
        yield {config: {"tokenizer_class": name, "do_lower_case": False, "strip_accents": False}}
    yield {"config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}, config: {"tokenizer_class": None, "do_lower_case": False}}
    yield {"tokenizer.json": None, "vocab.txt": "\n".join(WORDS) + "\n"}
    yield {"tokenizer.json": None, "vocab.txt": "\r\n".join(WORDS), config: {"do_lower_case": False}}
    yield {"tokenizer.json": {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                                        "max_input_chars_per_word": 20, "vocab": {word: i for i, word in enumerate(WORDS)}}}}
    yield {"tokenizer.json": {"post_processor": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}}
    yield {"tokenizer.json": {"post_processor": None}, config: {"tokenizer_class": "PreTrainedTokenizerFast"}}
    yield {"added_tokens.json": {"Newword": new, "@user": new + 1}}
    yield {"added_tokens.json": {"<img>": new}, "special_tokens_map.json": {"mask_token": token("[MASK]", lstrip=True)}}
    plain = {str(i): token(text, special=True) for i, text in enumerate(SPECIALS)}
    yield {config: {"added_tokens_decoder": plain | {str(new): token("Newword"), str(new + 1): token("@user", normalized=True)}}}
    yield {config: {"added_tokens_decoder": plain | {str(new): token("newword", normalized=True, single_word=True)}}}
    yield {config: {"additional_special_tokens": ["Newword", "@user"]}}
    yield {config: {"extra_special_tokens": {"image_token": "<img>"}}}
    yield {config: {"image_token": "<img>"}}
    yield {"special_tokens_map.json": {"additional_special_tokens": ["<img>"], "cls_token": "[SEP]"}}
    yield {config: {"mask_token": {"__type": "AddedToken", **token("<mask>", lstrip=True)}}}
    yield {config: {"split_special_tokens": True}}
    yield {config: {"truncation_side": "left"}}
    yield {"tokenizer.json": {"truncation": {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}}}
    yield {"tokenizer.json": {"padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                                          "pad_type_id": 0, "pad_token": "[PAD]"}}}
    yield {config: {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}}
    for name in ("PreTrainedTokenizerFast", "XLMRobertaTokenizer"):
        yield {"tokenizer.json": unigram(), config: {"tokenizer_class": name, "mask_token": "<mask>"}}
    never = {"tokenizer_class": "XLMRobertaTokenizerFast", "add_prefix_space": False, "mask_token": "<mask>"}
    yield {"tokenizer.json": unigram(), config: never}
    yield from other_classes()


def byte_level():
    """A byte-level tokenizer.json, as RoBERTas have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=275, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    made.train_from_iterator(["hello the cat, the hat and the hello"] * 3, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return json.loads(made.to_str())


def polish():
    """HerBERT's files: merges of letters, the last of a word with its mark, in the older form and in a tokenizer.json."""
    letters = [*LETTERS, *".,@<>[]中文"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>", "he", "ca"]
    vocabulary, merges = {piece: number for number, piece in enumerate(pieces)}, ["t h", "h e", "c a", "th e</w>"]
    for name, more in (("HerbertTokenizer", {}), ("HerbertTokenizerFast", {"do_lower_case": True})):
        said = {"tokenizer_config.json": {"tokenizer_class": name, "mask_token": "<mask>"} | more}
        yield {"tokenizer.json": None, "vocab.json": vocabulary, "merges.txt": "\n".join(["#version: 0.2", *merges, ""])} | said
        made = Tokenizer(models.BPE(vocabulary, [tuple(one.split()) for one in merges], unk_token="<unk>", end_of_word_suffix="</w>"))
        yield {"tokenizer.json": json.loads(made.to_str())} | said


def other_classes():
    config, bytewise = "tokenizer_config.json", byte_level()
    vocabulary, merges = bytewise["model"]["vocab"], [m if isinstance(m, str) else " ".join(m) for m in bytewise["model"]["merges"]]
    for name in ("RobertaTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast"):
        yield {"tokenizer.json": bytewise, config: {"tokenizer_class": name, "mask_token": "<mask>"}}
    yield {"tokenizer.json": bytewise, config: {"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>", "add_prefix_space": True}}
    older = bytewise | {"model": {"vocab": vocabulary, "merges": merges}, "post_processor": None, "pre_tokenizer": None}
    yield {"tokenizer.json": older, config: {"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>", "sep_token": "<mask>"}}
    for ending in ("\n", "\r\n"):
        files = {"tokenizer.json": None, "vocab.json": vocabulary, "merges.txt": ending.join(["#version: 0.2", *merges, ""])}
        yield files | {config: {"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>"}}
    yield from polish()
    french = {"tokenizer_class": "CamembertTokenizer", "mask_token": "<mask>"}
    yield {"tokenizer.json": unigram(), config: french}
    yield {"tokenizer.json": unigram(), config: french | {"additional_special_tokens": ["[mask]"], "add_prefix_space": False}}
    yield {"tokenizer.json": unigram(), config: french | {"mask_token": {"__type": "AddedToken", **token("[MASK]")}, "unk_token": "▁"}}
    for more in ({}, {"do_lower_case": False}):
        yield {config: {"tokenizer_class": "MPNetTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]"} | more}
    yield {"tokenizer.json": None, "vocab.txt": "\n".join(WORDS), config: {"tokenizer_class": "MPNetTokenizer", "mask_token": "[MASK]"}}
    yield from decoders_classes()


def pieces():
    """A SentencePiece tokenizer.json of merges, as Llama 2 and Gemma have it."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=30, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made.train_from_iterator(["hello the cat, the hat"] * 3, trainer)
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    found = json.loads(made.to_str())
    spelt = sorted({byte for text in ("é", "中", "@") for byte in text.encode()})
    found["model"]["vocab"] |= {f"<0x{byte:02X}>": len(found["model"]["vocab"]) + place for place, byte in enumerate(spelt)}
    return found


def decoders_classes():
    config, bytewise, spelt = "tokenizer_config.json", byte_level(), pieces()
    mark = "<|endoftext|>"
    stripped = [one | {"lstrip": one["content"] == "</s>"} for one in bytewise["added_tokens"]]
    for name in ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"):
        other = bytewise | {"normalizer": {"type": "Lowercase"}, "added_tokens": stripped}
        said = {"tokenizer_class": name, "mask_token": "<mask>", "eos_token": "</s>", "add_eos_token": True}
        yield {"tokenizer.json": other, config: said}
    vocabulary, merges = bytewise["model"]["vocab"], [" ".join(m) for m in bytewise["model"]["merges"]]
    older = {"tokenizer.json": None, "vocab.json": vocabulary, "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}
    for name in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        yield older | {config: {"tokenizer_class": name, "mask_token": mark, "bos_token": "<s>", "add_bos_token": True}}
    for more in ({}, {"legacy": True}, {"add_prefix_space": False}):
        yield {"tokenizer.json": spelt, config: {"tokenizer_class": "LlamaTokenizer", "mask_token": None} | more}
    yield {"tokenizer.json": spelt, config: {"tokenizer_class": "GemmaTokenizer", "mask_token": None}}
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": None, "extra_special_tokens": ["hello"]}
    yield {"tokenizer.json": spelt | {"added_tokens": [token("hello", lstrip=True) | {"id": 5}]}, config: own}


def formula(shape):
    """Numbers that anybody can make again, float32."""
    return np.sin(np.arange(1, np.prod(shape) + 1)).astype(np.float32).reshape(shape)


def apply(folder, changes):
    """Change the files of a folder."""
    for name, change in changes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if change is None:
            path.unlink()
        elif isinstance(change, str):
            path.write_bytes(change.encode())
        elif name.endswith(".safetensors"):
            save_file({tensor: formula(shape) for tensor, shape in change.items()}, path)
        elif isinstance(change, list):
            path.write_text(json.dumps(change))
        else:
            path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))


def make_tokenizers():
    base, cases = word_piece(), []
    for changes in tokenizer_cases():
        with tempfile.TemporaryDirectory() as name:
            apply(Path(name), base)
            apply(Path(name), changes)
            made = AutoTokenizer.from_pretrained(name)
            found = [made(text) for text in TEXTS] + [made(*TEXTS[:2])]
            types = [one.get("token_type_ids", [0] * len(one["input_ids"])) for one in found]
            short = [made(text, truncation=True, max_length=6)["input_ids"] for text in TEXTS]
            ids = [one["input_ids"] for one in found]
            cases.append({"changes": changes, "ids": ids, "types": types, "short": short, "mask": made.mask_token})
    write("tokenizers.json", {"base": base, "texts": TEXTS, "cases": cases})


def sentence_cases():
    limits, settings, pooling = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in
               enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_More", "Dense"), ("3_More", "LayerNorm")])]
    for mode in ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["lasttoken", "cls"]):
        yield {pooling: {"pooling_mode": mode}}
    yield {pooling: {"pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": True}}
    yield {pooling: {"pooling_mode_mean_tokens": False}}
    yield {limits: {"max_seq_length": None}}
    yield {limits: None, "sentence_distilbert_config.json": {"max_seq_length": 7}}
    yield {limits: {"max_seq_length": 9, "tokenizer_args": {"model_max_length": 5}}}
    yield {limits: {"processing_kwargs": {"text": {"max_length": 6}}}}
    yield {limits: {"processor_kwargs": {"do_lower_case": False}}}
    yield {limits: {"do_lower_case": True}, "tokenizer_config.json": {"do_lower_case": False}}
    yield {"tokenizer_config.json": {"truncation_side": "left"}}
    prompt = {"prompts": {"query": "the quick "}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    yield {settings: prompt}
    yield {settings: prompt, pooling: {"include_prompt": False}}
    yield {settings: prompt, pooling: {"include_prompt": False, "pooling_mode": ["weightedmean", "cls"]}}
    yield {settings: {"truncate_dim": 7}}
    yield {"modules.json": modules[:2]}
    config, weights = "2_More/config.json", "2_More/model.safetensors"
    tanh, gelu = "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.GELU"
    yield {"modules.json": modules[:3], config: {"in_features": 40, "out_features": 5, "activation_function": tanh},
           weights: {"linear.weight": [5, 40], "linear.bias": [5]}}
    yield {"modules.json": modules, config: {"in_features": 40, "out_features": 5, "bias": False, "use_residual": True,
                                             "activation_function": gelu},
           weights: {"linear.weight": [5, 40], "residual.weight": [5, 40]},
           "3_More/config.json": {"dimension": 5}, "3_More/model.safetensors": {"norm.weight": [5], "norm.bias": [5]}}
    for name in ("Mish", "LeakyReLU"):
        dense = {"in_features": 40, "out_features": 3, "activation_function": tanh.replace("Tanh", name)}
        yield {"modules.json": modules[:3], config: dense, weights: {"linear.weight": [3, 40], "linear.bias": [3]}}


def make_sentences():
    cases = []
    for changes in sentence_cases():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(shutil.copytree(HERE / "bert_sentence", Path(name) / "model"))
            apply(folder, changes)
            found = SentenceTransformer(str(folder), device="cpu").encode(LONG)
            cases.append({"changes": changes, "embeddings": [[float(f"{x:.7g}") for x in row] for row in found.tolist()]})
    write("sentences.json", {"texts": LONG, "cases": cases})


def write(name, value):
    cases = ",\n".join(json.dumps(case, ensure_ascii=False) for case in value.pop("cases"))
    head = "".join(f"{json.dumps(key)}: {json.dumps(one, ensure_ascii=False)},\n" for key, one in value.items())
    (HERE / name).write_text(f'{{\n{head}"cases": [\n{cases}\n]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    make_tokenizers()
    make_sentences()
