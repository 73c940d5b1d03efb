#!/usr/bin/env python3
"""Make the golden reference files of families whose layers are not BERT's: as make_golden.py does, beside which it lies.

    ref/bin/python tests/golden/make_layers.py                # all cases
    ref/bin/python tests/golden/make_layers.py modernbert     # only these cases

Cases
    modernbert          ModernBertForMaskedLM, 4 layers of which 2 see all tokens, a window of 3 to each side
    modernbert_seqcls   ModernBertForSequenceClassification, mean pooling, with all biases that there may be
    nomicbert           NomicBertForMaskedLM, token types
    nomicbert_seqcls    NomicBertForSequenceClassification
    mpnet               MPNetForMaskedLM, requests of up to 90 rows
    mpnet_seqcls        MPNetForSequenceClassification
    dinov2              Dinov2ForImageClassification, pictures of a preprocessor (28) smaller than its positions are for (42)
    dinov2_registers    Dinov2WithRegistersModel, the same, gated MLPs
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from make_golden import folder, make_tokenizer, randomise, right_padded, save_and_reload, seed, text_inputs, write_expected
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForSequenceClassification,
    NomicBertConfig,
    NomicBertForMaskedLM,
    NomicBertForSequenceClassification,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

SIZES = {"vocab_size": 120, "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 72}
LENGTHS = [6, 11, 2, 20]


@torch.no_grad()
def normed(model):
    """Give every norm weights near 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.copy_(1 + 0.1 * torch.randn(module.weight.shape))
    return model


def text_case(case, cls, config, types=False, masks=None):
    """A model with random weights, a tokenizer, and what it makes of requests of LENGTHS."""
    seed(case)
    path = folder(case)
    model = save_and_reload(normed(randomise(cls(config))), path)
    make_tokenizer(config.vocab_size, path, config.max_position_embeddings)
    inputs = text_inputs(right_padded(LENGTHS) if masks is None else masks, config.vocab_size)
    if not types:
        del inputs["token_type_ids"]
    write_expected(path, "expected.npz", model, inputs)
    return path, model


def modern(**more):
    marks = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return ModernBertConfig(**SIZES | {"num_hidden_layers": 4, "max_position_embeddings": 64, "local_attention": 6} | marks | more)


def modernbert():
    text_case("modernbert", ModernBertForMaskedLM, modern())


def modernbert_seqcls():
    biases = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
    config = modern(classifier_pooling="mean", num_labels=3, hidden_activation="gelu_new", num_hidden_layers=2, **biases)
    text_case("modernbert_seqcls", ModernBertForSequenceClassification, config)


def nomic(**more):
    return NomicBertConfig(**SIZES | {"max_position_embeddings": 64} | more)


def nomicbert():
    text_case("nomicbert", NomicBertForMaskedLM, nomic(), types=True)


def nomicbert_seqcls():
    text_case("nomicbert_seqcls", NomicBertForSequenceClassification, nomic(num_labels=3, hidden_act="gelu"), types=True)


def mpnet():
    masks = right_padded([*LENGTHS, 90])
    text_case("mpnet", MPNetForMaskedLM, MPNetConfig(**SIZES | {"max_position_embeddings": 100}), masks=masks)


def mpnet_seqcls():
    text_case("mpnet_seqcls", MPNetForSequenceClassification, MPNetConfig(**SIZES | {"max_position_embeddings": 64}, num_labels=3))


def image_case(case, cls, config):
    """A model with random weights, a preprocessor of pictures of 28 x 28, and what it makes of two."""
    seed(case)
    path = folder(case)
    model = normed(randomise(cls(config)))
    for name, values in model.named_parameters():
        if "lambda1" in name:
            with torch.no_grad():
                values.copy_(0.8 + 0.2 * torch.randn(values.shape))
    model = save_and_reload(model, path)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(path)
    with torch.no_grad():
        pixels = torch.randn(2, 3, 28, 28)
        made = {"pixel_values": pixels, "expected_last_hidden_state": model.base_model(pixels).last_hidden_state}
        if model.base_model is not model:
            made["expected_logits"] = model(pixels).logits
    np.savez_compressed(os.path.join(path, "expected.npz"), **{name: values.numpy() for name, values in made.items()})


PICTURES = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5, "image_size": 42, "patch_size": 7}


def dinov2():
    image_case("dinov2", Dinov2ForImageClassification, Dinov2Config(**PICTURES, num_labels=4))


def dinov2_registers():
    config = Dinov2WithRegistersConfig(**PICTURES, num_register_tokens=3, use_swiglu_ffn=True)
    image_case("dinov2_registers", Dinov2WithRegistersModel, config)


CASES = ("modernbert", "modernbert_seqcls", "nomicbert", "nomicbert_seqcls", "mpnet", "mpnet_seqcls", "dinov2", "dinov2_registers")
if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        globals()[name]()
