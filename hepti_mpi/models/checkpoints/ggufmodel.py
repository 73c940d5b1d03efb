"""What a GGUF file says of its model, in the words of a Hugging Face folder: config.json, names and order of tensors, special tokens.

Knows what llama.cpp calls things, and what its converter changes: rows of Q and K of archs llama and smollm3 are permuted, Gemma's norms
have 1 added.
Knows no store and no family's table. Source: convert_hf_to_gguf.py, gguf-py/gguf/constants.py and src/llama-model.cpp of llama.cpp.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.gguf import GgufFile
from hepti_mpi.models.untrusted import shown

# what llama.cpp calls tensors: in front of and behind the layers, and in layer {}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SANDWICH = BLOCK | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
FUSED = BLOCK | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GPT2 = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc"}
GPT2 |= {"ffn_down": "mlp.c_proj"}
GPT2_OUTER = {"token_embd.weight": "wte.weight", "position_embd.weight": "wpe.weight", "output.weight": "lm_head.weight"}
GPT2_OUTER |= {"output_norm.weight": "ln_f.weight", "output_norm.bias": "ln_f.bias"}
FREQUENCIES = "rope_freqs.weight"  # by which each frequency of Llama 3 is divided
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"  # the same of Phi-3, for texts up to the original length, and others
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as in all of its models; factor and the original length are found out
LENGTHS = (8192, 4096, 16384)

# keys below the architecture's own name: of all of them, of those that turn positions, and what each adds. What an architecture does not
# read is refused, unless its value is one of HARMLESS: files are made by hand too, and whoever wrote a key meant something by it
SHARED = """block_count context_length embedding_length feed_forward_length vocab_size attention.head_count attention.head_count_kv
attention.key_length attention.value_length expert_count""".split()
TURNED = """attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count rope.scaling.type rope.scaling.factor rope.scale_linear
rope.scaling.original_context_length rope.scaling.attn_factor""".split()
WINDOWS = ("attention.sliding_window", "attention.sliding_window_pattern")
READ: dict[str, Sequence[str]] = {
    "llama": TURNED, "qwen2": TURNED, "qwen3": TURNED, "smollm3": TURNED, "phi3": [*TURNED, "attention.sliding_window"], "gemma": TURNED,
    "gemma2": [*TURNED, *WINDOWS, "attn_logit_softcapping", "final_logit_softcapping"],
    "gemma3": [*TURNED, *WINDOWS, "final_logit_softcapping", "rope.freq_base_swa"], "gpt2": ["attention.layer_norm_epsilon"],
}  # fmt: skip
HARMLESS: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,), "attention.sliding_window": (0,),
    # llama.cpp takes these whatever the file says, transformers does not
    "rope.scaling.yarn_beta_fast": (32.0,), "rope.scaling.yarn_beta_slow": (1.0,), "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
}  # fmt: skip
PLAIN = ("rope.scaling.finetuned", "expert_used_count", "use_parallel_residual")


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`: the model_type and class that Hugging Face has for it, `outer` and `block` names of tensors.

    `permuted`: rows of Q and K are; `added`: norms have 1 added; `transposed`: matrices of layers are, beside what PyTorch stores there.
    """

    model_type: str
    name: str
    outer: Mapping[str, str]
    block: Mapping[str, str]
    permuted: bool = False
    added: bool = False
    transposed: bool = False
    prefix: str = "model.layers."


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", OUTER, BLOCK, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", OUTER, BLOCK),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", OUTER, BLOCK),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", OUTER, BLOCK, permuted=True),
    "gemma": Architecture("gemma", "GemmaForCausalLM", OUTER, BLOCK, added=True),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", OUTER, SANDWICH, added=True),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", OUTER, SANDWICH, added=True),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", OUTER, FUSED),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel", GPT2_OUTER, GPT2, transposed=True, prefix="h."),
}


class GgufModel:
    """A GGUF file as if it were a folder: `config` as config.json would say it, `shapes` of the tensors by their names there."""

    def __init__(self, file: GgufFile) -> None:
        """Raises ModelError for an architecture, a key or a tensor that is not supported."""
        self.file = file
        parts = file.metadata.get("split.count", 0)
        if not _is_one_of(parts, (0, 1)):
            why = f"is one of {shown(parts, 20)} parts of a model; join them with llama-gguf-split --merge of llama.cpp"
            raise ModelError(f"{file.path} {why}, and name what that writes")
        found = file.metadata.get("general.architecture")
        if not isinstance(found, str) or found not in ARCHITECTURES:
            raise ModelError(f"{file.path} has architecture {found!r:.60}, which is not supported; supported: {', '.join(ARCHITECTURES)}")
        self.key, self.kind = found, ARCHITECTURES[found]
        self._refuse_unknown()
        factors = (SHORT, LONG) if self.key == "phi3" else (FREQUENCIES,)
        self._names = {self._plain(name): name for name in file.shapes if name not in factors}
        self.config = self._config()
        self.heads = {"attn_q": self.config["num_attention_heads"], "attn_k": self.config["num_key_value_heads"]}
        flip = self._flipped
        self.shapes = {plain: shape[::-1] if flip(name) else shape for plain, name in self._names.items() for shape in [file.shapes[name]]}

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as Hugging Face stores it, float32. Raises ModelError."""
        own = self._names[name]
        values = self.file.read(own)
        part = own.split(".")[2] if own.startswith("blk.") else ""
        if self.kind.permuted and part in self.heads:
            return _unpermuted(values, self.heads[part])
        if self.kind.added and "norm" in own:
            return values - 1
        return np.ascontiguousarray(values.T) if self._flipped(own) else values

    def _flipped(self, own: str) -> bool:
        return self.kind.transposed and own.startswith("blk.") and len(self.file.shapes[own]) == 2

    def _plain(self, name: str) -> str:
        """Return what Hugging Face calls a tensor. Raises ModelError for one that is not known."""
        if name in self.kind.outer:
            return self.kind.outer[name]
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in self.kind.block and parts[3] in ("weight", "bias"):
            return f"{self.kind.prefix}{parts[1]}.{self.kind.block[parts[2]]}.{parts[3]}"
        raise ModelError(f"{self.file.path}: tensor {shown(name, 100)} does not belong to a {self.key}, as far as is known here")

    def _refuse_unknown(self) -> None:
        read = {*SHARED, *READ[self.key], *PLAIN}
        for key, value in self.file.metadata.items():
            part = key.removeprefix(f"{self.key}.")
            if key != part and part not in read and not _is_one_of(value, HARMLESS.get(part, ())):
                why = f"is not known of a {self.key}: it may change answers"
                raise ModelError(f"{self.file.path}: key {shown(key, 100)} = {shown(value, 60)} {why}")
        if not _is_one_of(self._get("expert_count", 0), (0,)):
            raise ModelError(f"{self.file.path} is a mixture of experts, which is not supported yet")

    def _get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.key}.{key}", default)

    def _refuse_other(self, key: str, expected: object) -> None:
        """Refuse a key that says something else than what is taken all the same. Raises ModelError."""
        value = self._get(key, expected)
        if not _is_one_of(value, (expected,)):
            why = f"only {expected} is supported"
            raise ModelError(f"{self.file.path}: {self.key}.{key} is {shown(value, 60)}, {why}")

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
            raise ModelError(f"{self.file.path}: {self.key}.{key} is {shown(value, 60)!r}, expected one positive integer")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelError(f"{self.file.path}: {self.key}.{key} is {shown(value, 60)!r}, expected a number")
        return float(f"{value:.7g}")  # a float32 that JSON says in fewer digits

    def _config(self) -> dict[str, Any]:
        """Return config.json: what the families read of it, whatever the architecture calls it."""
        hidden, heads = self._integer("embedding_length"), self._integer("attention.head_count")
        words = self.file.shapes.get("token_embd.weight", (0,))[0]
        config: dict[str, Any] = {
            "model_type": self.kind.model_type, "architectures": [self.kind.name], "vocab_size": words,
            "hidden_size": hidden, "num_hidden_layers": self._integer("block_count"), "num_attention_heads": heads,
            "num_key_value_heads": self._integer("attention.head_count_kv", heads),
            "head_dim": self._integer("attention.key_length", hidden // heads),
            "intermediate_size": self._integer("feed_forward_length"),
            "max_position_embeddings": self._integer("context_length"),
            "tie_word_embeddings": "output.weight" not in self.file.shapes,
        }  # fmt: skip
        if self._integer("attention.value_length", config["head_dim"]) != config["head_dim"]:
            raise ModelError(f"{self.file.path}: keys and values have different widths, which is not supported")
        self._refuse_other("vocab_size", words)
        return config | EXTRAS[self.key](self)

    # what the architectures add

    def llama(self) -> dict[str, Any]:
        width = self._get("attention.key_length") or self._integer("embedding_length") // self._integer("attention.head_count")
        config: dict[str, Any] = {
            "hidden_act": "silu", "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._number("rope.freq_base", 10000.0), "rope_scaling": self._scaling(width),
            "attention_bias": "blk.0.attn_q.bias" in self.file.shapes, "mlp_bias": "blk.0.ffn_up.bias" in self.file.shapes,
        }  # fmt: skip
        turned = self._integer("rope.dimension_count", width)
        if turned != width:
            config["partial_rotary_factor"] = turned / width
        return config

    def qwen(self) -> dict[str, Any]:
        left_out = ("attention_bias", "mlp_bias") if self.key == "qwen2" else ("mlp_bias",)
        return {key: value for key, value in self.llama().items() if key not in left_out}

    def first_gemma(self) -> dict[str, Any]:
        config = {key: value for key, value in self.llama().items() if key not in ("hidden_act", "attention_bias", "mlp_bias")}
        return config | {"hidden_activation": "gelu_pytorch_tanh"}

    def gemma(self) -> dict[str, Any]:
        config = self.first_gemma() | {"sliding_window": self._integer("attention.sliding_window")}
        self._refuse_other("attention.sliding_window_pattern", period := 2 if self.key == "gemma2" else 6)
        width = self._get("attention.key_length", 256)
        config["query_pre_attn_scalar"] = width  # but of the 27B models: hidden / heads
        if (self.key, config_layers := self._integer("block_count")) in (("gemma2", 46), ("gemma3", 62)):
            config["query_pre_attn_scalar"] = self._integer("embedding_length") // self._integer("attention.head_count")
        if self.key == "gemma2":
            caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
            return config | {key: self._number(key, default) or None for key, default in caps.items()} | _alternating(config_layers, period)
        config["rope_local_base_freq"] = self._number("rope.freq_base_swa", 10000.0)
        config["final_logit_softcapping"] = self._number("final_logit_softcapping", 0.0) or None
        return config | {"rope_theta": self._number("rope.freq_base")} | _alternating(config_layers, period)

    def phi(self) -> dict[str, Any]:
        config = {key: value for key, value in self.llama().items() if key not in ("attention_bias", "mlp_bias")}
        window, original = "attention.sliding_window", "rope.scaling.original_context_length"
        if SHORT in self.file.shapes:
            config["original_max_position_embeddings"] = self._integer(original, self._integer("context_length"))
        return config | {"sliding_window": None if _is_one_of(self._get(window, 0), (0,)) else self._integer(window)}

    def gpt2(self) -> dict[str, Any]:
        heads = self._integer("attention.head_count")
        self._refuse_other("attention.head_count_kv", heads)
        self._refuse_other("attention.key_length", self._integer("embedding_length") // heads)
        return {
            "activation_function": "gelu_new", "layer_norm_epsilon": self._number("attention.layer_norm_epsilon"),
            "n_embd": self._integer("embedding_length"), "n_layer": self._integer("block_count"),
            "n_head": heads, "n_positions": self._integer("context_length"),
            "n_inner": self._integer("feed_forward_length"),
        }  # fmt: skip

    def _scaling(self, width: int) -> dict[str, Any] | None:
        """Return rope_scaling of config.json. Raises ModelError for a kind that is not supported.

        A file that names no kind means linear, as in llama.cpp, whose older key of the factor counts where the newer one is missing.
        """
        kind, factor = self._get("rope.scaling.type", "linear"), self._number("rope.scaling.factor", self._number("rope.scale_linear", 1.0))
        kind = kind if isinstance(kind, str) else shown(kind, 60)
        factor = factor or 1.0  # 0: not said
        if SHORT in self.file.shapes and kind in ("longrope", "linear", "none") and factor == 1:
            return self._longrope(width)
        self._refuse_other("rope.scaling.attn_factor", 1.0)
        if FREQUENCIES in self.file.shapes:
            if kind not in ("none", "linear") or (kind == "linear" and factor != 1):
                why = f"positions are scaled by {FREQUENCIES} and by {kind!r:.60} too"
                raise ModelError(f"{self.file.path}: {why}, which together are not supported")
            return self._llama3(width)
        if kind == "none" or (kind == "linear" and factor == 1):
            return None
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind == "yarn":
            original = self._integer("rope.scaling.original_context_length", self._integer("context_length"))
            return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        raise ModelError(f"{self.file.path}: positions are scaled by {kind!r:.60}, which is not supported; supported: linear, yarn, llama3")

    def _longrope(self, width: int) -> dict[str, Any]:
        """Return the scaling of Phi-3 by the factors in the file. Raises ModelError for others than of each pair that is turned."""
        pairs = self._integer("rope.dimension_count", width) // 2
        if any(self.file.shapes.get(name) != (pairs,) for name in (SHORT, LONG)):
            raise ModelError(f"{self.file.path}: {SHORT} and {LONG} have to be factors of {pairs} pairs of a head's numbers")
        short, long = ([float(f"{one:.7g}") for one in self.file.read(name).tolist()] for name in (SHORT, LONG))
        factor = self._number("rope.scaling.attn_factor", 1.0)
        return {"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": factor}

    def _llama3(self, width: int) -> dict[str, Any]:
        """Return the scaling of Llama 3 that gives the factors in the file. Raises ModelError when none does."""
        factors = self.file.read(FREQUENCIES)
        theta = self._number("rope.freq_base", 10000.0)
        for length in LENGTHS:
            scaling = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3, "original_max_position_embeddings": length}
            if factors.shape == (width // 2,) and np.allclose(llama3_factors(width, theta, scaling), factors, rtol=1e-4):
                return scaling
        raise ModelError(f"{self.file.path}: the factors in {FREQUENCIES} are not those of Llama 3, which alone are supported")


EXTRAS: dict[str, Callable[[GgufModel], dict[str, Any]]] = {
    "llama": GgufModel.llama, "qwen2": GgufModel.qwen, "qwen3": GgufModel.qwen, "smollm3": GgufModel.llama,
    "gemma": GgufModel.first_gemma,
    "gemma2": GgufModel.gemma, "gemma3": GgufModel.gemma, "phi3": GgufModel.phi, "gpt2": GgufModel.gpt2,
}  # fmt: skip


def _is_one_of(value: object, expected: Sequence[object]) -> bool:
    """Return whether a value of metadata, which may be a list of numbers, is one of these."""
    return not isinstance(value, np.ndarray | list) and value in expected


def _alternating(layers: int, period: int) -> dict[str, Any]:
    """Return the kinds of layers of which each `period`th sees all rows."""
    return {"layer_types": ["full_attention" if (number + 1) % period == 0 else "sliding_attention" for number in range(layers)]}


def llama3_factors(width: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """Return by what each of width / 2 frequencies is divided. Source: _compute_llama3_parameters, transformers 5."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, width, 2) / width)
    low, high, original = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of Q or K, [heads * dim, ...], with the halves of each head apart, where llama.cpp has them pairwise."""
    halves = values.reshape(heads, -1, 2, *values.shape[1:])  # [heads, dim / 2, 2, ...]
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
