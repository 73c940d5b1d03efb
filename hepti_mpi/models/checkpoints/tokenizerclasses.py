"""The classes of tokenizers that transformers has: what each takes from tokenizer.json or its older files, and what it builds anew.

Knows the files of each class and its special tokens; knows no other side file, no model and no text.
Source: transformers 5.23, tokenization_utils_tokenizers.py (TokenizersBackend.convert_to_native_format), and of models/:
gpt2/tokenization_gpt2.py, gpt_neox/tokenization_gpt_neox.py, qwen2/tokenization_qwen2.py, llama/tokenization_llama.py,
gemma/tokenization_gemma.py,
bert/tokenization_bert.py, roberta/tokenization_roberta.py, xlm_roberta/tokenization_xlm_roberta.py, camembert/tokenization_camembert.py,
herbert/tokenization_herbert.py.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from hepti_mpi.errors import ModelError
from hepti_mpi.models.untrusted import parse_json

JSON, CONFIG, VOCAB, WORDS, MERGES = "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"
TYPED = ["input_ids", "token_type_ids", "attention_mask"]
UNTYPED = ["input_ids", "attention_mask"]
BERT_MARKS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
XLM_MARKS = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"}
XLM_MARKS |= {"pad_token": "<pad>", "mask_token": "<mask>"}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
Settings = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One class of tokenizers.

    `marks`: its special tokens by default.
    `inputs`: what it gives the model by default. `build`: makes the tokenizer without added tokens, given settings and files.
    `frame`: sets what is put around texts, last of all. `files`: those that do without tokenizer.json.
    `extra`: special tokens besides the marks, where no file names any. `side`: where it pads, where no file says.
    """

    marks: Mapping[str, str | None]
    inputs: list[str]
    build: Callable[[Settings, Mapping[str, bytes]], Tokenizer]
    frame: Callable[[Tokenizer, Settings], None]
    files: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    side: str = "right"


def tokenizer_kind(name: object, files: Mapping[str, bytes]) -> Kind:
    """Return the kind that a tokenizer_class stands for. Raises ModelError, also where the `files` are not those that it needs."""
    if name is not None and not isinstance(name, str):
        raise ModelError(f"{CONFIG}: tokenizer_class is {name!r:.60}, expected a name")
    plain = "BertTokenizer" if name is None else name.removesuffix("Fast") if name in KINDS or name[:-4] in KINDS else name
    if plain not in KINDS:
        hint = "load the folder with transformers and see what it makes of a text before another class is written there"
        raise ModelError(f"{CONFIG}: tokenizer_class {name!r:.60} is not supported; supported: {', '.join(KINDS)}; {hint}")
    kind = ANY if plain == "LlamaTokenizer" and b'"ByteLevel"' in files.get(JSON, b"") else KINDS[plain]  # Llama 3's is left as it is
    if JSON not in files and not (kind.files and set(kind.files) <= files.keys()):
        needed = f"{JSON}, or {' and '.join(kind.files)}" if kind.files else JSON
        raise ModelError(f"tokenizer_class {plain} needs a {needed}; load the folder with transformers' AutoTokenizer and save it")
    return kind


def document_of(files: Mapping[str, bytes], model: str, name: str) -> dict[str, Any]:
    """Return tokenizer.json, whose model must be a `model`. Raises ModelError."""
    document = parse_json(files[JSON], JSON)
    found = document.get("model")
    found = found if isinstance(found, dict) else {}
    untold = "BPE" if "merges" in found else "WordPiece"  # older files do not say
    said = found.get("type", untold if isinstance(found.get("vocab"), dict) else None)
    if said != model:
        raise ModelError(f"{JSON} holds a {said} model, {name} is for {model}; set tokenizer_class in {CONFIG} to what it is made for")
    return document


def read_document(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return the tokenizer that tokenizer.json holds, as it is."""
    tokenizer = Tokenizer.from_str(files[JSON].decode("utf-8"))
    take_over(settings, tokenizer)
    return tokenizer


def merges_of(settings: Settings, files: Mapping[str, bytes], name: str) -> tuple[dict[str, int], list[tuple[str, str]], Any]:
    """Return vocabulary and merges of tokenizer.json, or of its older files, and what tokenizer.json puts around texts.

    Raises ModelError.
    """
    if JSON not in files:
        text = files[MERGES].decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
        lines = [line.split(" ") for line in text.split("\n") if not line.startswith("#version")] if text else []
        return parse_json(files[WORDS], WORDS), [(first, second) for first, second in lines], None
    document = document_of(files, "BPE", name)
    pairs = [one.split(" ") if isinstance(one, str) else one for one in document["model"]["merges"]]
    empty = Tokenizer.from_str(json.dumps(document | {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}))
    take_over(settings, empty)
    return document["model"]["vocab"], [(first, second) for first, second in pairs], empty.post_processor


def gpt2(settings: Settings, files: Mapping[str, bytes], name: str = "GPT2Tokenizer") -> Tokenizer:
    """Return GPT-2's tokenizer: vocabulary, merges and what is put around texts are taken over, the rest follows the settings."""
    vocabulary, merges, around = merges_of(settings, files, name)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space") is True)
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), around
    return tokenizer


def gpt_neox(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return GPT-NeoX's tokenizer: GPT-2's of composed letters, around which only bos and eos are put that the settings ask for."""
    tokenizer = gpt2(settings, files, "GPTNeoXTokenizer")
    tokenizer.normalizer, tokenizer.post_processor = normalizers.NFC(), None
    return tokenizer


def qwen2(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return Qwen2's tokenizer: GPT-2's, by its own rule of splitting."""
    tokenizer = gpt2(settings, files, "Qwen2Tokenizer")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space") is True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), bytewise])
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def frame_qwen2(tokenizer: Tokenizer, settings: Settings) -> None:
    """Let every special token be a plain one, whatever the files say of blanks beside it."""
    marks = [token for key, token in settings.items() if key.endswith("_token") and isinstance(token, (str, AddedToken))]
    every = [*marks, *settings["own_tokens"].values(), *settings["extra_special_tokens"]]
    tokenizer.add_tokens([AddedToken(str(token), special=True) for token in every])
    frame_ends(tokenizer, settings)


def llama(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return Llama's tokenizer of pieces, which may spell letters by their bytes: vocabulary and merges are taken over."""
    vocabulary, merges, around = merges_of(settings, files, "LlamaTokenizer")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True))
    prefix = settings.get("add_prefix_space") in (None, True)
    scheme = "never" if not prefix else "always" if settings.get("legacy") else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    tokenizer.post_processor = around
    return tokenizer


def gemma(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return Gemma's tokenizer: Llama's, whose texts begin without a blank."""
    vocabulary, merges, around = merges_of(settings, files, "GemmaTokenizer")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=True, unk_token=str(settings["unk_token"]), byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = around
    return tokenizer


def take_over(settings: Settings, tokenizer: Tokenizer) -> None:
    """Take the side of truncation and the pad token from tokenizer.json where the settings do not say."""
    if tokenizer.truncation is not None:
        settings.setdefault("truncation_side", tokenizer.truncation["direction"])
    if tokenizer.padding is not None:
        settings.setdefault("pad_token", tokenizer.padding["pad_token"])
        settings.setdefault("padding_side", tokenizer.padding["direction"])


def word_piece(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return BERT's tokenizer: only the vocabulary is taken over, normalizer and the rest follow the settings."""
    if JSON in files:
        document = document_of(files, "WordPiece", "BertTokenizer")
        vocabulary = document["model"]["vocab"]
        empty = document | {"model": document["model"] | {"vocab": {}}, "added_tokens": []}
        take_over(settings, Tokenizer.from_str(json.dumps(empty)))
    else:
        lines = files[VOCAB].decode("utf-8").split("\n")
        vocabulary = {line.rstrip(): number for number, line in enumerate(lines[:-1] if not lines[-1] else lines)}
    require(settings, "unk_token", "cls_token", "sep_token")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=str(settings["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars") in (None, True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case") in (None, True),
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix="##")
    return tokenizer


def mpnet(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return MPNet's tokenizer: BERT's, with marks that may be part of words, and blanks before a mask that are part of it."""
    for key in XLM_MARKS:
        if isinstance(settings[key], str):
            settings[key] = AddedToken(settings[key], lstrip=key == "mask_token")
    return word_piece(settings, files)


def frame_bert(tokenizer: Tokenizer, settings: Settings) -> None:
    first, last = str(settings["cls_token"]), str(settings["sep_token"])
    ends = [(mark, tokenizer.token_to_id(mark)) for mark in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0", pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1", special_tokens=ends
    )


def herbert(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return HerBERT's tokenizer: merges of letters within words that BERT's rule cuts; vocabulary and merges are taken over."""
    vocabulary, merges, _ = merges_of(settings, files, "HerbertTokenizer")
    require(settings, "unk_token", "cls_token", "sep_token")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=str(settings["unk_token"]), end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, clean_text=True, handle_chinese_chars=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def frame_herbert(tokenizer: Tokenizer, settings: Settings) -> None:
    """Put its marks around texts, by the numbers that they have in the published vocabulary."""
    tokenizer.post_processor = processors.BertProcessing((str(settings["sep_token"]), 2), (str(settings["cls_token"]), 0))


def require(settings: Settings, *keys: str) -> None:
    """Raise ModelError where a special token that the class cannot do without is null."""
    for key in keys:
        if settings[key] is None:
            raise ModelError(f"{CONFIG}: {key} is null, a tokenizer of this class needs one")


def byte_level(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return RoBERTa's tokenizer: vocabulary and merges are taken over, the rest follows the settings."""
    vocabulary, merges, _ = merges_of(settings, files, "RobertaTokenizer")
    require(settings, "cls_token", "sep_token")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space") is True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def frame_roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    texts = [str(settings[key]) for key in ("sep_token", "cls_token")]
    last, first = ((text, tokenizer.token_to_id(text) or 0) for text in texts)  # both are there: they were added
    tokenizer.post_processor = processors.RobertaProcessing(last, first, True, settings.get("add_prefix_space") is True)


def unigram(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return XLM-R's tokenizer: vocabulary and character map are taken over, the rest follows the settings."""
    document = document_of(files, "Unigram", "XLMRobertaTokenizer")
    return pieces(settings, files, document, 3)


def camembert(settings: Settings, files: Mapping[str, bytes]) -> Tokenizer:
    """Return CamemBERT's tokenizer: XLM-R's, with another place of the unknown token and blanks before a mask that are part of it."""
    document, unknown = document_of(files, "Unigram", "CamembertTokenizer"), str(settings["unk_token"])
    if isinstance(settings["mask_token"], str):
        settings["mask_token"] = AddedToken(settings["mask_token"], lstrip=True, special=True)
    return pieces(settings, files, document, next((at for at, (text, _) in enumerate(document["model"]["vocab"]) if text == unknown), 0))


def pieces(settings: Settings, files: Mapping[str, bytes], document: Mapping[str, Any], unknown: int) -> Tokenizer:
    """Return the tokenizer of the pieces in `document`, tokenizer.json, of which number `unknown` stands for what is in none."""
    require(settings, "bos_token", "eos_token")
    take_over(settings, Tokenizer.from_str(files[JSON].decode("utf-8")))
    tokenizer = Tokenizer(models.Unigram([tuple(piece) for piece in document["model"]["vocab"]], unk_id=unknown, byte_fallback=False))
    steps = document.get("normalizer") or {}
    steps = steps["normalizers"] if steps.get("type") == "Sequence" else [steps]
    chars = next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), None)
    if chars is not None:
        tokenizer.normalizer = normalizers.Precompiled(base64.b64decode(chars))
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return tokenizer


def frame_xlm(tokenizer: Tokenizer, settings: Settings) -> None:
    first, last = str(settings["bos_token"]), str(settings["eos_token"])
    ends = [(mark, tokenizer.token_to_id(mark)) for mark in (first, last)]
    pair = [first, "$A", last, last, "$B", last]
    tokenizer.post_processor = processors.TemplateProcessing(single=[first, "$A", last], pair=pair, special_tokens=ends)


def frame_ends(tokenizer: Tokenizer, settings: Settings) -> None:
    """Leave what tokenizer.json puts around texts; without, there may be bos and eos, and a pair has two types."""
    if tokenizer.post_processor is None:
        first, last = ([str(settings[f"{name}_token"])] if ended(settings, name) else [] for name in ("bos", "eos"))
        single = [*(f"{mark}:0" for mark in first), "$A:0", *(f"{mark}:0" for mark in last)]
        pair = [*single, *(f"{mark}:1" for mark in first), "$B:1", *(f"{mark}:1" for mark in last)]
        ends = [(mark, tokenizer.token_to_id(mark)) for mark in dict.fromkeys((*first, *last))]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def ended(settings: Settings, name: str) -> bool:
    """Return whether texts get a token `name`, which is bos or eos."""
    return bool(settings.get(f"add_{name}_token")) and settings.get(f"{name}_token") is not None


BERT = Kind(BERT_MARKS, TYPED, word_piece, frame_bert, (VOCAB,))
ANY = Kind({}, UNTYPED, read_document, frame_ends)
END = "<|endoftext|>"
GPT2_MARKS = {"unk_token": END, "bos_token": END, "eos_token": END, "pad_token": None}  # not even the one of tokenizer.json
QWEN_MARKS = {"unk_token": END, "eos_token": END, "pad_token": END}
LLAMA_MARKS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
GEMMA_MARKS = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"}
HERBERT_MARKS = {key: mark for key, mark in XLM_MARKS.items() if key not in ("bos_token", "eos_token")}
KINDS = {
    **dict.fromkeys(("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"), BERT),
    "DistilBertTokenizer": replace(BERT, inputs=UNTYPED),
    "RobertaTokenizer": Kind(XLM_MARKS, UNTYPED, byte_level, frame_roberta, (WORDS, MERGES)),
    "MPNetTokenizer": Kind(XLM_MARKS | {"unk_token": "[UNK]"}, UNTYPED, mpnet, frame_roberta, (VOCAB,)),
    "XLMRobertaTokenizer": Kind(XLM_MARKS, UNTYPED, unigram, frame_xlm),
    "HerbertTokenizer": Kind(HERBERT_MARKS, UNTYPED, herbert, frame_herbert, (WORDS, MERGES)),
    "CamembertTokenizer": Kind(XLM_MARKS, UNTYPED, camembert, frame_xlm, extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")),
    "GPT2Tokenizer": Kind(GPT2_MARKS, UNTYPED, gpt2, frame_ends, (WORDS, MERGES)),
    "GPTNeoXTokenizer": Kind(GPT2_MARKS | {"pad_token": "<|padding|>"}, UNTYPED, gpt_neox, frame_ends, (WORDS, MERGES)),
    "Qwen2Tokenizer": Kind(QWEN_MARKS, UNTYPED, qwen2, frame_qwen2, (WORDS, MERGES)),
    "LlamaTokenizer": Kind(LLAMA_MARKS, UNTYPED, llama, frame_ends, side="left"),
    "GemmaTokenizer": Kind(GEMMA_MARKS, UNTYPED, gemma, frame_ends, side="left"),
    **dict.fromkeys(("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"), ANY),
}
