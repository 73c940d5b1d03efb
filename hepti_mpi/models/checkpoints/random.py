"""Models with random weights in well-known sizes, for trying out and measuring without a download.

Knows the sizes; knows no store and no plan. The same name and seed give the same weights on every machine, in any order.
"""

import json
import string
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.families.family import class_labels, spec_of
from hepti_mpi.models.families.registry import FAMILIES
from hepti_mpi.models.identity import source_hash
from hepti_mpi.models.inputs.tokens import SPECIALS, word_piece_json
from hepti_mpi.models.spec import ModelSpec, named_weights

PREFIX = "random:"
WORDS = """the of and a to in is it you that he was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many then them
would write like so these her long make thing see him two has look more day could go come did my sound no most number who over know
water than call first people may down side been now find any new work part take get place made live where after back little only
round man year came show every good me give our under name very through just form much great think say help low line before turn
cause same mean differ move right boy old too does tell sentence set three want air well also play small end put home read hand port
large spell add even land here must big high such follow act why ask men change went light kind off need house picture try us again
animal point mother world near build self earth father head stand own page should country found answer school grow study still learn
plant cover food sun four thought let keep eye never last door between city tree cross since hard start might story saw far sea draw
left late run while press close night real life few stop open seem together next white children begin got walk example ease paper
often always music those both mark book letter until mile river car feet care second group carry took rain eat room friend began idea
fish mountain north once base hear horse cut sure watch color face wood main enough plain girl usual young ready above ever red list
though feel talk bird soon body dog family direct pose leave song measure state product black short numeral class wind question
happen complete ship area half rock order fire south problem piece told knew pass farm top whole king size heard best hour better
true during hundred am remember step early hold west ground interest reach fast five sing listen six table travel less morning ten
simple several vowel toward war lay against pattern slow center love person money serve appear road map science rule govern pull
cold notice voice fall power town fine certain fly unit lead cry dark machine note wait plan figure star box noun field rest correct
able pound done beauty drive stood contain front teach week final gave green quick develop sleep warm free minute strong special
mind behind clear tail produce fact street inch lot nothing course stay wheel full force blue object decide surface deep moon island
foot yet busy test record boat common gold possible plane age dry wonder laugh thousand ago ran check game shape yes cool miss
brought heat snow bed bring sit perhaps fill east weight language among cat mat sat wide crossed train boils seven degrees garden""".split()

BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 56, "num_hidden_layers": 3, "num_attention_heads": 7, "intermediate_size": 101}
TEXT = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522, "max_position_embeddings": 512}
IMAGE = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 224, "patch_size": 16, "num_labels": 1000}
ROBERTA = {"model_type": "roberta", "architectures": ["RobertaModel"], "type_vocab_size": 1}
ROBERTA |= {"pad_token_id": 0, "max_position_embeddings": 513}  # 1 is the unknown word here
DISTILBERT = {"model_type": "distilbert", "architectures": ["DistilBertModel"]}
ELECTRA = {"model_type": "electra", "architectures": ["ElectraModel"]}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
SMOLLM2 |= {"intermediate_size": 1536, "max_position_embeddings": 8192}
LLAMA_1B = {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_1B |= {"intermediate_size": 8192, "max_position_embeddings": 131072}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert-base": TEXT | BERT_BASE,
    "bert-large": TEXT | LARGE,
    "vit-base": IMAGE | BERT_BASE,
    "vit-large": IMAGE | LARGE,
    "minilm": TEXT | MINILM,
    "roberta-base": ROBERTA | BERT_BASE | {"vocab_size": 50265},
    "distilbert-base": DISTILBERT,  # as transformers takes them where config.json does not say
    "electra-small": ELECTRA,
    "mpnet-base": {"model_type": "mpnet", "architectures": ["MPNetModel"], "max_position_embeddings": 514},
    "modernbert-base": {"model_type": "modernbert", "architectures": ["ModernBertModel"]},
    "nomicbert": {"model_type": "nomic_bert", "architectures": ["NomicBertModel"]},
    "dinov2-base": {"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"], "num_labels": 1000},
    "smollm2-135m": LLAMA | SMOLLM2 | {"rope_theta": 100000.0},
    "llama-3.2-1b": LLAMA | LLAMA_1B | {"rope_theta": 500000.0},
    "tiny-llama": LLAMA | TINY | {"vocab_size": 120, "max_position_embeddings": 256},
    "tiny-bert": TEXT | TINY | {"vocab_size": 120},
    "tiny-roberta": ROBERTA | TINY | {"vocab_size": 120},
    "tiny-distilbert": DISTILBERT | {"dim": 56, "n_layers": 3, "n_heads": 7, "hidden_dim": 101, "vocab_size": 120},
    "tiny-electra": ELECTRA | TINY | {"vocab_size": 120, "embedding_size": 24},
    "tiny-vit": IMAGE | TINY | {"image_size": 20, "patch_size": 4, "num_labels": 5},
}


def random_model(name: str, seed: int = 0) -> ModelFiles:
    """Return the model `name`, with or without "random:" before it. Raises ModelError for an unknown name."""
    short = name.removeprefix(PREFIX)
    if short not in CONFIGS:
        raise ModelError(f"no random model {short!r:.60}; there are {', '.join(PREFIX + known for known in CONFIGS)}")
    config = CONFIGS[short]
    text = json.dumps(config, indent=2).encode()
    spec = make_spec(short, config)
    extra = tokenizer_file(spec) if spec.embedding == "tokens" else preprocessor_file(spec)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for weight_name, weight in named_weights(spec):
            yield weight_name, random_weight(weight_name, weight.shape, seed)

    files = {"config.json": text} | extra
    return ModelFiles(spec, files, source_hash(spec, files, [f"{PREFIX}{short} seed {seed}"]), stream)


def make_spec(name: str, config: dict[str, Any]) -> ModelSpec:
    """Return the spec: a text model ends in a pooler, or in words, an image model in classes."""
    family = FAMILIES[config["model_type"]]
    fields = family.fields(config)
    task = family.architectures[config["architectures"][0]]
    options = fields.pop("options", {}) | task.options(config) | ({"scores": "softmax"} if task.head == "image-classes" else {})
    labels = class_labels(config) if task.head == "image-classes" else ()
    back = task.steps(fields, labels, tied=True)
    return spec_of(family, name, task.head, fields, labels=labels, options=options, back=back)


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return float32 values that depend on nothing but the arguments: 1 for weights of norms and scales, else of deviation 0.02."""
    if name.endswith(("norm.weight", "given.weight", ".scale")):
        return np.ones(shape, np.float32)
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(0.02)
    return values


def tokenizer_file(spec: ModelSpec) -> dict[str, bytes]:
    """Return a WordPiece tokenizer.json of a few words; letters, digits and punctuation are in it, so that all ASCII text fits."""
    singles = string.ascii_lowercase + string.digits
    vocabulary = [*SPECIALS, *singles, *(f"##{c}" for c in singles), *string.punctuation]
    vocabulary += [word for word in dict.fromkeys(WORDS) if word not in singles]
    return {"tokenizer.json": word_piece_json(vocabulary[: spec.numbers("ids")])}


def preprocessor_file(spec: ModelSpec) -> dict[str, bytes]:
    """Return the preprocessor_config.json of a ViT."""
    side = spec.options["image_size"]
    steps = {"do_resize": True, "size": {"height": side, "width": side}, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255}
    steps |= {"image_processor_type": "ViTImageProcessor", "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return {"preprocessor_config.json": json.dumps(steps, indent=2).encode()}
