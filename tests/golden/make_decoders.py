#!/usr/bin/env python3
"""Make decoders.npz: what transformers says of tiny decoders whose weights follow from their names (tests/decoders.py).

    ref/bin/python tests/golden/make_decoders.py

Per case: its config.json, the shapes of its tensors, ids [prompts, 40], -1 behind the end of a prompt, the logits behind the last three
tokens of each prompt [prompts, 3, words], and 8 greedy tokens [prompts, 8] that follow.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))
from decoders import CASES, LENGTHS, values

LAST, NEW = 3, 8


@torch.no_grad()
def expected(name):
    sizes = dict(CASES[name])
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tied = {key for key in model.state_dict() if key.startswith("lm_head") and config.tie_word_embeddings}
    for key, tensor in model.state_dict().items():
        if key not in tied:
            tensor.copy_(torch.from_numpy(values(key, tuple(tensor.shape))))
    config.architectures = [type(model).__name__]
    kept = {key: list(one.shape) for key, one in model.state_dict().items() if key not in tied}
    ids = np.full((len(LENGTHS), max(LENGTHS)), -1)
    logits, tokens = np.zeros((len(LENGTHS), LAST, config.vocab_size), np.float32), np.full((len(LENGTHS), NEW), -1)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = np.random.default_rng(row).integers(3, config.vocab_size, length)
        text = torch.from_numpy(ids[row : row + 1, :length])
        logits[row, -min(LAST, length) :] = model(text).logits[0, -LAST:].numpy()
        for place in range(NEW):
            tokens[row, place] = int(model(text).logits[0, -1].argmax())
            text = torch.cat([text, torch.tensor([[tokens[row, place]]])], 1)
    described = json.dumps({"config": json.loads(config.to_json_string(use_diff=False)), "shapes": kept})
    return {f"{name}.json": np.array(described), f"{name}.ids": ids, f"{name}.logits": logits, f"{name}.tokens": tokens}


found = {}
for case in CASES:
    found |= expected(case)
    print(case, float(np.abs(found[f"{case}.logits"]).max()), found[f"{case}.tokens"][0])
np.savez_compressed(Path(__file__).parent / "decoders.npz", **found)
