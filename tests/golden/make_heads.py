#!/usr/bin/env python3
"""Make heads.json: what transformers and sentence-transformers answer for changed copies of the golden models.

Run it like make_golden.py, with sentence-transformers 6.2.0 installed as well:  ref/bin/python tests/golden/make_heads.py

Each case says how to change a copy of the golden folder `base`: `config` sets keys of config.json (null removes one), `tensors` sets
tensors to a ramp from -1 to 1 of this shape (null removes one), `files` are written into the folder. `inputs` are the lines of a .jsonl
file, `expected` what the reference gives for each: for masked words [[token, score], ...] of the first mask, for classes [[label,
score], ...], for token classes [[token, label, score], ...], best first where there is an order.
"""
import json
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import pipeline

HERE = os.path.dirname(os.path.abspath(__file__))
MASKED = ["the dog runs to the [MASK]", "[MASK] walks by the river"]
PAIRS = [["the dog runs", "a cat sat by the river"], ["the moon", "snow and fire, and a small boat on the lake"]]
LONG = [["the dog runs " * 12, "a cat sat by the river " * 2], ["the moon", "snow and fire on the lake " * 9]]
RANKED = [["the cat sat", "on a mat"], ["two birds", "a cat saw the two birds in old trees by the river"]]
TEXTS = ["the dog [SEP] runs", "a cat sat by the river"]
ONE = {"classifier.weight": [1, 40], "classifier.bias": [1]}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
WORDS = {"cls.predictions.decoder.weight": [131, 40]}
BIAS = {"cls.predictions.bias": [131]}
DECODER = {"cls.predictions.decoder.bias": [131]}
SAVED = {  # what CrossEncoder.save_pretrained of 6.2 writes
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "sequence-classification",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}, "module_output_name": "scores",
    },
    "config_sentence_transformers.json": {
        "__version__": {"sentence_transformers": "6.2.0"}, "activation_fn": IDENTITY, "default_prompt_name": None,
        "model_type": "CrossEncoder", "prompts": {},
    },
}  # fmt: skip
PROMPT = {"default_prompt_name": "query", "prompts": {"query": "the night "}, "activation_fn": SIGMOID}
PROMPTED = SAVED | {"config_sentence_transformers.json": SAVED["config_sentence_transformers.json"] | PROMPT}
FAMILIES = [(base, prefix, head) for base, prefix, own in (
    ("roberta", "Roberta", "other biases"), ("xlm_roberta", "XLMRoberta", ""), ("camembert", "Camembert", ""),
    ("distilbert", "DistilBert", "untied"), ("electra", "Electra", "untied"),
) for head in ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "cross-encoder", own) if head]  # fmt: skip
OWN = {  # what is odd about a checkpoint of each family
    "roberta": {"lm_head.decoder.bias": [331]}, "distilbert": {"vocab_projector.weight": [88, 24]},
    "electra": {"generator_lm_head.weight": [88, 16]},
}  # fmt: skip


def family_case(base, prefix, head):
    """A case of a folder that holds all heads."""
    mask = "[MASK]" if base in ("distilbert", "electra") else "<mask>"
    name = head if head.startswith("For") else "ForSequenceClassification" if head == "cross-encoder" else "ForMaskedLM"
    case = {"name": f"{base}, {head}", "base": base, "config": {"architectures": [prefix + name], "dtype": "float32"}}
    if name == "ForMaskedLM":
        own = {"config": case["config"] | {"tie_word_embeddings": head != "untied"}, "tensors": OWN[base]} if head != name else {}
        return case | own | {"inputs": [text.replace("[MASK]", mask) for text in MASKED]}
    if head == "cross-encoder":
        out = "classifier" if base == "distilbert" else "classifier.out_proj"
        return case | {"tensors": {f"{out}.weight": [1, 24], f"{out}.bias": [1]}, "inputs": PAIRS, "pairs": True,
                       "config": case["config"] | ONE_LABEL | {"sentence_transformers": {"activation_fn": IDENTITY}}}  # fmt: skip
    texts = [text.replace(" [SEP]", ",") for text in TEXTS]
    return case | {"inputs": texts if name == "ForTokenClassification" else [{"text": a, "text_pair": b} for a, b in PAIRS]}


CASES = [
    {"name": "tied, both biases", "base": "bert_mlm", "tensors": DECODER, "inputs": MASKED},
    {"name": "tied, the other bias only", "base": "bert_mlm", "tensors": DECODER | {"cls.predictions.bias": None}, "inputs": MASKED},
    {"name": "untied, both biases", "base": "bert_mlm", "config": {"tie_word_embeddings": False}, "tensors": WORDS | DECODER,
     "inputs": MASKED},
    {"name": "said to be tied, other words, one bias", "base": "bert_mlm", "tensors": WORDS | BIAS, "inputs": MASKED},
    {"name": "classifier, pairs", "base": "bert_seqcls", "inputs": [{"text": a, "text_pair": b} for a, b in PAIRS]},
    {"name": "classifier, pairs as lists", "base": "bert_seqcls", "inputs": [{"text": pair} for pair in PAIRS]},
    {"name": "labels that are numbers", "base": "bert_seqcls", "config": {"id2label": {"1": 7, "0": 5, "2": "x"}}, "inputs": TEXTS},
    {"name": "one label, regression", "base": "bert_seqcls", "config": ONE_LABEL | {"problem_type": "regression"}, "tensors": ONE,
     "inputs": TEXTS},
    {"name": "many labels", "base": "bert_seqcls", "config": {"problem_type": "multi_label_classification"}, "inputs": TEXTS},
    {"name": "cross-encoder, plain scores", "base": "bert_seqcls", "tensors": ONE, "inputs": PAIRS, "pairs": True,
     "config": ONE_LABEL | {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}},
    {"name": "cross-encoder, sigmoid of a regression, too long", "base": "bert_seqcls", "tensors": ONE, "inputs": LONG, "pairs": True,
     "config": ONE_LABEL | {"sbert_ce_default_activation_function": SIGMOID, "problem_type": "regression"}},
    {"name": "cross-encoder, three labels", "base": "bert_seqcls", "inputs": PAIRS, "pairs": True,
     "config": {"sentence_transformers": {"version": "4.0.1"}}},
    {"name": "cross-encoder, tanh", "base": "bert_seqcls", "tensors": ONE, "inputs": PAIRS, "pairs": True,
     "config": ONE_LABEL | {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}},
    {"name": "cross-encoder as 6.2 saves it, too long", "base": "bert_seqcls", "tensors": ONE, "config": ONE_LABEL, "files": SAVED,
     "inputs": LONG, "pairs": True},
    {"name": "cross-encoder with a prompt", "base": "bert_seqcls", "tensors": ONE, "config": ONE_LABEL, "files": PROMPTED,
     "inputs": PAIRS, "pairs": True},
    {"name": "token classes", "base": "bert_tokencls", "inputs": TEXTS},
    {"name": "token classes, unknown words", "base": "bert_tokencls", "inputs": ["the 中文 dog & zoë@runs", "& [UNK] ##s"]},
    *(family_case(*one) for one in FAMILIES),
    {"name": "a decoder, pairs", "base": "qwen3_seqcls", "inputs": [{"text": a, "text_pair": b} for a, b in RANKED]},
    {"name": "a decoder, texts that end in padding", "base": "qwen3_seqcls", "inputs": ["the cat sat <pad> <pad>", "a mat <pad>"]},
    {"name": "a decoder, cross-encoder", "base": "qwen3_seqcls", "inputs": RANKED, "pairs": True,
     "config": {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}},
    {"name": "a decoder, cross-encoder as 6.2 saves it, too long", "base": "qwen3_seqcls", "files": SAVED, "pairs": True,
     "inputs": [["the cat sat " * 12, "on a mat by the river " * 6], *RANKED]},
]  # fmt: skip


def ramp(shape):
    return torch.from_numpy(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))


def changed(case, folder):
    shutil.copytree(os.path.join(HERE, case["base"]), folder)
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file) | case.get("config", {})
    for name, content in ({"config.json": {k: v for k, v in config.items() if v is not None}} | case.get("files", {})).items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    path = os.path.join(folder, "model.safetensors")
    tensors = load_file(path) | {name: shape and ramp(shape) for name, shape in case.get("tensors", {}).items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})


def cross_encoder(folder, pairs):
    model = CrossEncoder(folder, device="cpu")
    labels = model.config.id2label
    for row in model.predict(pairs).reshape(len(pairs), -1).tolist():
        yield sorted(([labels[number], score] for number, score in enumerate(row)), key=lambda x: -x[1])


def answers(case, folder):
    if case.get("pairs"):
        return list(cross_encoder(folder, case["inputs"]))
    kind = case.get("config", {}).get("architectures", [case["base"]])[0]
    if kind.endswith(("_mlm", "MaskedLM")):
        pipe = pipeline("fill-mask", model=folder, device="cpu")
        return [[[pipe.tokenizer.convert_ids_to_tokens(x["token"]), x["score"]] for x in pipe(text)] for text in case["inputs"]]
    if kind.endswith(("_tokencls", "TokenClassification")):
        pipe = pipeline("token-classification", model=folder, device="cpu", ignore_labels=[])
        return [[[x["word"], x["entity"], float(x["score"])] for x in pipe(text)] for text in case["inputs"]]
    pipe = pipeline("text-classification", model=folder, device="cpu", top_k=None)
    texts = [one if isinstance(one, str) else one if "text_pair" in one else dict(zip(("text", "text_pair"), one["text"]))
             for one in case["inputs"]]  # fmt: skip
    return [[[x["label"], x["score"]] for x in pipe([text])[0]] for text in texts]


def main():
    found = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = os.path.join(temporary, "model")
            changed(case, folder)
            expected = [[[*names, float(f"{score:.7g}")] for *names, score in one] for one in answers(case, folder)]
        found.append({key: value for key, value in case.items() if key != "pairs"} | {"expected": expected})
        print(case["name"], expected[0][:2])
    with open(os.path.join(HERE, "heads.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
