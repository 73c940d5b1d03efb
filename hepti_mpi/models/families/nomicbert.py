"""NomicBERT: a BERT with rotary positions, gated MLPs and no biases in its products; as transformers has it, or with Nomic's own keys."""

from collections.abc import Mapping
from typing import Any

from hepti_mpi.errors import ModelError
from hepti_mpi.models.blocks import Attention, Layer, Mlp, Norm
from hepti_mpi.models.families.bert import BERT, MASKED_WORDS
from hepti_mpi.models.families.family import CLASSES, POOLER, Family, Source, Task, integer, listed, mapping, pair, shared_fields
from hepti_mpi.models.families.rotary import rotary_of
from hepti_mpi.models.sidefiles import honoured, without
from hepti_mpi.models.steps import LayerNorm, Lookup

OWN = {  # Nomic's keys of what transformers 5 calls otherwise
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps", "n_positions": "max_position_embeddings", "rotary_emb_base": "rope_theta",
}  # fmt: skip
BASE = 1000.0  # of rotary positions where nothing is said, in Nomic's code as in transformers
UNSEEN = {"rope_theta": BASE, "layer_norm_eps": 1e-12, "num_attention_heads": 12}  # what transformers' class takes, and no shape tells
ALIKE = {  # Nomic's switches, which its text models have so
    "prenorm": False, "parallel_block": False, "parallel_block_tied_norm": False, "causal": False, "use_rms_norm": False,
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "rotary_emb_interleaved": False, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "rotary_emb_fraction": 1, "rotary_emb_scale_base": None, "activation_function": "swiglu",
}  # fmt: skip


def nomic_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ModelSpec fields of a NomicBERT. Raises ModelError."""
    for key, expected in ALIKE.items():
        if config.get(key, expected) != expected:
            raise ModelError(f"config.json: {key} is {config[key]!r:.60}, only {expected!r} is supported")
    limit = integer(config, "max_position_embeddings", 2048)  # whatever Nomic's own keys say
    config = {"hidden_act": "silu"} | translated(config)
    shared, hidden = shared_fields(config), integer(config, "hidden_size", 768)
    dim = integer(config, "head_dim", hidden // shared["heads"])
    turns = rotary_of({"rope_theta": BASE, "max_position_embeddings": 2048} | config, dim)
    norm = Norm(hidden, shared["norm_eps"])
    layer = Layer(Attention(hidden, shared["heads"], dim, biases="", rotary=turns),
                  Mlp(hidden, shared["ffn"], shared["activation"], gated=True, bias=False), after=(norm, norm))  # fmt: skip
    tables = (("words", "ids", integer(config, "vocab_size", 30528)), ("types", "types", integer(config, "type_vocab_size", 2)))
    front = *(Lookup(f"embedding.{name}", by, size, hidden) for name, by, size in tables), LayerNorm("embedding.norm", hidden, norm.eps)
    positions = integer(config, "max_position_embeddings", 2048)
    # beyond what it was trained on Nomic's own code scales the frequencies by the length of a text
    positions = min(positions, integer(config, "max_trained_positions", positions))
    fields = {"embedding": "tokens", "positions": positions, "limit": limit, "front": front}
    return shared | fields | listed([layer] * shared["layers"])


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json in the words of transformers. Raises ModelError where it says two things of one.

    Only Nomic's code reads the keys of OWN: transformers' class takes its own ones, or UNSEEN. All published models say the same, so that
    both give the same numbers. Of a size a shape tells that transformers took another.
    """
    plain = {key: value for key, value in config.items() if key not in OWN}
    own = {OWN[key]: (key, value) for key, value in config.items() if key in OWN and value is not None}
    theta = mapping(config, "rope_parameters").get("rope_theta")
    known = UNSEEN | plain | ({} if theta is None else {"rope_theta": theta})
    for name, (key, value) in own.items():
        if known.get(name, value) not in (None, value) and name != "max_position_embeddings":
            where = "rope_parameters" if name == "rope_theta" else name
            why = f"config.json: {key} is {value!r:.60}, and {name} is {known[name]!r:.60} to transformers"
            raise ModelError(f"{why}; put what is meant into {where} alone")
    return {name: value for name, (_, value) in own.items()} | plain


RENAMES = (
    (r"^cls\.predictions\.transform\.LayerNorm", "cls.predictions.transform.layer_norm"),
    # in memory, and so in a state_dict that was saved as it is, transformers 5 calls them so; save_pretrained of 5.23 as below
    (r"^embeddings\.LayerNorm\.", "emb_ln."),
    (r"^layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"encoder.layers.\1.attn.\2_proj."),
    (r"^layers\.(\d+)\.self_attn\.o_proj\.", r"encoder.layers.\1.attn.out_proj."),
    (r"^layers\.(\d+)\.post_attention_layernorm\.", r"encoder.layers.\1.norm1."),
    (r"^layers\.(\d+)\.mlp\.up_proj\.", r"encoder.layers.\1.mlp.fc11."),
    (r"^layers\.(\d+)\.mlp\.gate_proj\.", r"encoder.layers.\1.mlp.fc12."),
    (r"^layers\.(\d+)\.mlp\.down_proj\.", r"encoder.layers.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.post_mlp_layernorm\.", r"encoder.layers.\1.norm2."),
)


NOMICBERT = Family(
    name="nomic_bert",
    fields=nomic_fields,
    prefixes=("nomic_bert.", "bert."),
    architectures={
        "NomicBertModel": Task("none"),
        "NomicBertForMaskedLM": Task("masked-words", MASKED_WORDS),
        "NomicBertForPreTraining": Task("masked-words", MASKED_WORDS),
        "NomicBertForSequenceClassification": Task("sequence-classes", (POOLER, CLASSES)),
        "NomicBertForTokenClassification": Task("token-classes", (CLASSES,)),
    },
    sources={
        "embedding.words": Source("as is", ("embeddings.word_embeddings.weight",)),
        "embedding.types": Source("as is", ("embeddings.token_type_embeddings.weight",)),
        **pair("embedding.norm", "emb_ln"),
        **{name: source for at, m in enumerate("qkv")
           for name, source in pair(f"layers.{{}}.attention.{m}", "encoder.layers.{}.attn.Wqkv", "heads", part=(at, 3),
                                    other=pair("", f"encoder.layers.{{}}.attn.{m}_proj", "heads")).items()},
        **pair("layers.{}.attention.o", "encoder.layers.{}.attn.out_proj", "transpose"),
        **pair("layers.{}.attention.norm", "encoder.layers.{}.norm1"),
        **pair("layers.{}.mlp.up", "encoder.layers.{}.mlp.fc11"),
        **pair("layers.{}.mlp.gate", "encoder.layers.{}.mlp.fc12"),
        **pair("layers.{}.mlp.down", "encoder.layers.{}.mlp.fc2", "transpose"),
        **pair("layers.{}.mlp.norm", "encoder.layers.{}.norm2"),
        **{name: source for name, source in BERT.sources.items() if name.startswith("head.")},
        **pair("head.norm", "cls.predictions.transform.layer_norm"),
    },
    renames=RENAMES,
    dropped=BERT.dropped,
    tied=BERT.tied,
    instead=BERT.instead,
    keys={
        **honoured(" ".join((*OWN, *ALIKE, "rope_parameters", "rope_scaling", "max_trained_positions"))),
        **without("auto_map fused_bias_fc fused_dropout_add_ln dense_seq_output use_flash_attn use_xentropy pad_vocab_size_multiple"),
        **without("rotary_scaling_factor reorder_and_upcast_attn *_pdrop last_layer_subset"),
    },
)  # fmt: skip
MODEL_TYPES = {"nomic_bert": NOMICBERT}
