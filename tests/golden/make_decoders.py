#!/usr/bin/env python3
"""Make decoders.npz, and long_decoders.npz of prompts of up to 300 tokens: what transformers says of tiny decoders whose weights follow
from their names (tests/decoders.py); and decoder_classes.npz, of those with classes in the place of words.

    ref/bin/python tests/golden/make_decoders.py        (sentence-transformers 6.2.0 is installed as well)

Per case: its config.json, the shapes of its tensors, ids [prompts, longest], -1 behind the end of a prompt, the logits behind the last
three tokens of each prompt [prompts, 3, words], and 8 (4) greedy tokens [prompts, 8] that follow. Of classifiers: ids [texts, longest],
-1 behind the end of a text, and logits [texts, labels] or [texts, longest, labels], as if each text were alone.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

sys.path.insert(0, str(Path(__file__).parent.parent))
from decoders import CASES, CLASSES, CLASSIFIERS, LABELS, LENGTHS, LONG, LONG_LENGTHS, NO_PADDING, long, values

LAST, NEW = 3, 8


@torch.no_grad()
def expected(name, sizes, lengths, new):
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tied = {key for key in model.state_dict() if key.startswith("lm_head") and config.tie_word_embeddings}
    for key, tensor in model.state_dict().items():
        if key not in tied:
            tensor.copy_(torch.from_numpy(values(key, tuple(tensor.shape))))
    config.architectures = [type(model).__name__]
    kept = {key: list(one.shape) for key, one in model.state_dict().items() if key not in tied}
    ids = np.full((len(lengths), max(lengths)), -1)
    logits, tokens = np.zeros((len(lengths), LAST, config.vocab_size), np.float32), np.full((len(lengths), new), -1)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.random.default_rng(row).integers(3, config.vocab_size, length)
        text = torch.from_numpy(ids[row : row + 1, :length])
        logits[row, -min(LAST, length) :] = model(text).logits[0, -LAST:].numpy()
        for place in range(new):
            tokens[row, place] = int(model(text).logits[0, -1].argmax())
            text = torch.cat([text, torch.tensor([[tokens[row, place]]])], 1)
    described = json.dumps({"config": json.loads(config.to_json_string(use_diff=False)), "shapes": kept})
    return {f"{name}.json": np.array(described), f"{name}.ids": ids, f"{name}.logits": logits, f"{name}.tokens": tokens}


TASKS = {"Sequence": AutoModelForSequenceClassification, "Token": AutoModelForTokenClassification}
TEXTS = (17, 1, (9, 2), (0, 4))  # tokens, and how many of pad_token_id behind them


@torch.no_grad()
def classes(case, task):
    sizes = CASES[case] | {"pad_token_id": None if case in NO_PADDING else 0, "num_labels": LABELS.get(case, 3)}
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    model = TASKS[task].from_config(config, attn_implementation="eager").eval()
    for key, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(values(key, tuple(tensor.shape))))
    config.architectures = [type(model).__name__]
    ids, logits = np.full((len(TEXTS), 17), -1), np.zeros((len(TEXTS), *((17,) if task == "Token" else ()), config.num_labels), np.float32)
    for row, length in enumerate(TEXTS):
        own, padding = (length, 0) if isinstance(length, int) else length
        text = np.concatenate([np.random.default_rng(row).integers(3, config.vocab_size, own), np.zeros(padding, np.int64)])
        ids[row, : len(text)], given = text, model(torch.from_numpy(text)[None]).logits[0].numpy()
        logits[row, : len(text) if task == "Token" else None] = given
    shapes = {key: list(one.shape) for key, one in model.state_dict().items()}
    described = json.dumps({"config": json.loads(config.to_json_string(use_diff=False)), "shapes": shapes})
    return {f"{case} {task}.json": np.array(described), f"{case} {task}.ids": ids, f"{case} {task}.logits": logits}


np.savez_compressed(CLASSIFIERS, **{name: one for case, task in CLASSES for name, one in classes(case, task).items()})
found, longer = {}, {}
for case, sizes in CASES.items():
    found |= expected(case, dict(sizes), LENGTHS, NEW)
    longer |= expected(case, long(sizes), LONG_LENGTHS, NEW // 2)
    print(case, float(np.abs(found[f"{case}.logits"]).max()), found[f"{case}.tokens"][0], longer[f"{case}.tokens"][-1])
np.savez_compressed(Path(__file__).parent / "decoders.npz", **found)
np.savez_compressed(LONG, **longer)


def tokenizer_of(mark, padding_side):
    """Return the number of words, and a tokenizer that puts the token `mark` behind a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = f"<pad> {mark} <unk> query : the cat sat on a mat and saw two birds in old trees by river".split()
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {mark}", special_tokens=[(mark, 1)])
    special = {"pad_token": "<pad>", "eos_token": mark, "unk_token": "<unk>"}
    more = {"padding_side": padding_side, "model_max_length": 64}
    return len(words), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more, **special)


def embedding(name, mark, padding_side, folder_of, **more):
    """Make a folder NAME_embedding: a sentence-transformers model of a decoder, with a prompt; `folder_of` makes the modules behind the
    transformer, given its width. A text gets the token `mark` behind it.

    expected_text.json: {"texts", "embeddings"}, as SentenceTransformer.encode answers.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import AutoModel

    words, whole = tokenizer_of(mark, padding_side)
    sizes = CASES[name] | {"vocab_size": words, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1} | more
    model = AutoModel.from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes)).eval()
    for key, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(values(key, tuple(tensor.shape))))
    path = Path(__file__).parent / f"{name}_embedding"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        whole.save_pretrained(folder)
        made = SentenceTransformer(modules=[Transformer(folder), *folder_of(sizes["hidden_size"])], device="cpu")
    made.prompts, made.default_prompt_name = {"query": "query : ", "document": ""}, "query"
    made.save(str(path), create_model_card=False)
    texts = ["the cat sat", "two birds in old trees by the river and a mat", "river", "a cat saw the two birds " * 5]
    found = SentenceTransformer(str(path), device="cpu").encode(texts)
    (path / "expected_text.json").write_text(json.dumps({"texts": texts, "embeddings": found.tolist()}) + "\n")


def ranker(name, mark, **more):
    """Make a folder NAME_seqcls: a decoder that gives a pair of texts one score, with a tokenizer; make_heads.py asks it."""
    words, whole = tokenizer_of(mark, "left")
    sizes = CASES[name] | {"vocab_size": words, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "num_labels": 1} | more
    model = TASKS["Sequence"].from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes)).eval()
    for key, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(values(key, tuple(tensor.shape))))
    path = Path(__file__).parent / f"{name}_seqcls"
    model.save_pretrained(path)
    whole.save_pretrained(path)


def of_qwen(width):
    """Return what is behind Qwen3-Embedding: the last token's row, which is padded in front."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    return Pooling(width, "lasttoken"), Normalize()


def of_gemma(width):
    """Return what is behind EmbeddingGemma: a mean of all rows, and two products without bias or activation."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    made = [Dense(inner, outer, bias=False, activation_function=torch.nn.Identity()) for inner, outer in ((width, 12), (12, width))]
    for number, module in enumerate(made):
        module.linear.weight.copy_(torch.from_numpy(values(f"dense.{number}", tuple(module.linear.weight.shape))))
    return Pooling(width, "mean"), *made, Normalize()


with torch.no_grad():
    embedding("qwen3", "<|endoftext|>", "left", of_qwen)
    ranker("qwen3", "<|endoftext|>")
    # saved with twice the window, from which the class makes what it uses
    embedding("gemma3", "<eos>", "right", of_gemma, use_bidirectional_attention=True, sliding_window=8)
