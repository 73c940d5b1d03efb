#!/usr/bin/env python3
"""Make the golden folders of families whose heads are tried on one set of weights: roberta, xlm_roberta, camembert, distilbert, electra.

Run it like make_golden.py, with sentence-transformers 6.2.0 installed as well:  ref/bin/python tests/golden/make_families.py [FOLDER ...]

Each folder holds a tiny model with the weights of all heads of its family in one file, as they lie in checkpoints that somebody went on
with; config.json names the bare model. camembert and xlm_roberta are stored in float16; the reference computes in float32.
    expected.npz    input_ids, attention_mask (and token_type_ids) of mixed lengths, padding on both sides and, for the families that count
                    positions by padding, padding within; expected_last_hidden_state, expected_pooler_output, and for each architecture
                    "expected_logits <architecture>", with zeros where the mask is 0
    expected_text.json  "texts" with the "ids" of AutoTokenizer, those of the pair of the first two last; "embeddings" of the texts, as
                    SentenceTransformer gives them with the files in "modules" written into the folder
"""

import json
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 37, "max_position_embeddings": 66,
         "layer_norm_eps": 1e-5, "id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}  # fmt: skip
WORDS = "the of and to in is was cat dog sat mat house river big small red blue runs walk night rain moon tree bird fish".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["the cat sat on the mat", "A small {} runs, slowly! Zoë", "rain", "the dog\tand the <s> bird " * 2]
BERT_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["▁", *(f"▁{word}" for word in WORDS), *LETTERS, *".,!?'é"]
TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def word_piece():
    words = [*BERT_MARKS, *LETTERS, *("##" + c for c in LETTERS), *".,!?'-", *WORDS]
    return words, {"vocab.txt": "\n".join(words) + "\n", "tokenizer_config.json": {"tokenizer_class": "ElectraTokenizer"}}


def word_piece_json():
    words, _ = word_piece()
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(BERT_MARKS)
    return words, {"tokenizer.json": json.loads(made.to_str()), "tokenizer_config.json": {"model_max_length": 66}}


def byte_level():
    """vocab.json and merges.txt, as RoBERTas were published first."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=marks, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False)  # fmt: skip
    made.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    model = json.loads(made.to_str())["model"]
    vocabulary = model["vocab"] | {"<mask>": len(model["vocab"])}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    files = {"vocab.json": vocabulary, "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n"}
    return vocabulary, files | {"special_tokens_map.json": {"mask_token": {"content": "<mask>", "lstrip": True, "normalized": False,
                                                                          "rstrip": False, "single_word": False}}}  # fmt: skip


def unigram(marks):
    pieces = [*marks, *PIECES, "<mask>"]
    made = Tokenizer(models.Unigram([(piece, -float(i) / 9) for i, piece in enumerate(pieces)], unk_id=pieces.index("<unk>")))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens([*marks, "<mask>"])
    return pieces, {"tokenizer.json": json.loads(made.to_str())}


def xlm():
    return unigram(["<s>", "<pad>", "</s>", "<unk>"])


def french():
    return unigram(["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"])


FAMILIES = {  # folder -> prefix of the classes, architectures without it, tokenizer, what config.json says besides, type of the weights
    "roberta": ("Roberta", TASKS, byte_level, {"type_vocab_size": 1}, torch.float32),
    "xlm_roberta": ("XLMRoberta", TASKS, xlm, {"type_vocab_size": 1}, torch.float16),
    "camembert": ("Camembert", TASKS, french, {"type_vocab_size": 1, "hidden_act": "relu"}, torch.float16),
    "distilbert": ("DistilBert", TASKS, word_piece_json, {}, torch.float32),
    "electra": ("Electra", (*TASKS, "ForPreTraining"), word_piece, {"embedding_size": 16, "hidden_act": "gelu_new"}, torch.float32),
}
MODULES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True},
    "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
}


def config_of(prefix, vocabulary, more):
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"}
    sizes = {names.get(key, key) if prefix == "DistilBert" else key: value for key, value in SIZES.items()}
    sizes.pop("layer_norm_eps" if prefix == "DistilBert" else "", None)
    return getattr(transformers, f"{prefix}Config")(vocab_size=len(vocabulary), **sizes, **more)


@torch.no_grad()
def random_weights(model):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape)
        if "layernorm" in name.lower().replace("_", ""):
            p.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
        else:
            p.copy_(noise * (0.1 if p.dim() == 1 else 0.3 if "embeddings." in name else 1.2 / p.shape[1] ** 0.5))


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")


def inputs(case, vocabulary, typed):
    """Rows of 9 tokens of ten positions, with padding on both sides, and within for those who count by it."""
    mask = torch.tensor([[1] * 10, [1] * 4 + [0] * 6, [0] * 3 + [1] * 7, [1] * 10])
    ids = torch.randint(7, len(vocabulary), mask.shape)
    counted = case not in ("distilbert", "electra")
    ids[mask == 0] = int(counted)  # the padding is 1 there, 0 elsewhere
    if counted:
        ids[3, 4:6] = 1
    types = {"token_type_ids": (torch.arange(10)[None] > 4).long() * mask} if typed else {}
    return {"input_ids": ids, "attention_mask": mask} | types


@torch.no_grad()
def make(case):
    prefix, tasks, tokenizer, more, dtype = FAMILIES[case]
    torch.manual_seed(zlib.crc32(case.encode()))
    folder = HERE / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    vocabulary, files = tokenizer()
    config = config_of(prefix, vocabulary, more)
    tensors = {}
    for name in ("Model", *tasks):
        model = getattr(transformers, f"{prefix}{name}")(config)
        random_weights(model)
        own = "" if name == "Model" else f"{model.base_model_prefix}."
        for key, value in model.state_dict().items():  # the body is the first one's
            if name == "Model" or not key.startswith(own):
                tensors.setdefault((f"{model.base_model_prefix}." if name == "Model" else "") + key, value.to(dtype).contiguous().clone())
    words = next(key for key in tensors if key.endswith("word_embeddings.weight"))
    for copy in ("lm_head.decoder.weight", "vocab_projector.weight", "generator_lm_head.weight"):
        if copy in tensors:
            tensors[copy] = tensors[words].clone()
    if "lm_head.decoder.bias" in tensors:
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [f"{prefix}Model"], "dtype": str(dtype)[6:]}
    write(folder, {"config.json": json.dumps({k: v for k, v in said.items() if v is not None}, indent=1) + "\n"} | files)
    arrays = inputs(case, vocabulary, typed=case == "electra")
    shown = arrays["attention_mask"].unsqueeze(-1)
    result = dict(arrays)
    for name in ("Model", *tasks):
        model = getattr(transformers, f"{prefix}{name}").from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        found = model(**arrays)
        if name == "Model":
            result["expected_last_hidden_state"] = found.last_hidden_state * shown
            if getattr(found, "pooler_output", None) is not None:
                result["expected_pooler_output"] = found.pooler_output
        else:
            logits = found.logits.unsqueeze(-1) if name == "ForPreTraining" else found.logits
            result[f"expected_logits {prefix}{name}"] = logits * shown if logits.dim() == 3 else logits
    np.savez_compressed(folder / "expected.npz", **{key: value.numpy() for key, value in result.items()})
    write(folder, {"expected_text.json": json.dumps(texts(folder), ensure_ascii=False) + "\n"})


def texts(folder):
    made = AutoTokenizer.from_pretrained(folder)
    lines = [text.format(made.mask_token) for text in TEXTS]
    ids = [made(text)["input_ids"] for text in lines] + [made(*lines[:2])["input_ids"]]
    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copytree(folder, Path(name) / "model"))
        write(copy, MODULES)
        rows = SentenceTransformer(str(copy), device="cpu", model_kwargs={"dtype": torch.float32}).encode(lines).tolist()
    return {"texts": lines, "ids": ids, "modules": MODULES, "embeddings": [[float(f"{x:.7g}") for x in row] for row in rows]}


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FAMILIES:
        make(chosen)
