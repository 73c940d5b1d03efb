"""From the tensors of a checkpoint to the weights of the store, by a family's table. Knows names, shapes and the few transforms between
the two layouts; reads no file."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models.families.family import Family
from hepti_mpi.models.spec import ModelSpec, named_weights
from hepti_mpi.models.untrusted import shown
from hepti_mpi.wording import counted

ALTERNATING = ("columns", "interleaved")  # transforms of equal parts that do not follow each other as rows of the tensor
POSITIONS = ("positions", "positions bicubic", "positions smooth")
FIRST_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))  # as norms were called once
COMPUTED = {r"(.*\.)?((position|token_type)_ids|rotary_emb\.inv_freq)": "what some versions kept beside the weights"}
MODULES = "head.modules."  # weights of sentence-transformers' modules, which are in files of their own


@dataclass(frozen=True)
class Import:
    """One weight of the store and the tensors (by plain name) it is made of; no tensors: it is zero.

    `part`: as of Source; `span`: the first row of a part, and the one behind its last, where it lies in the tensor as one piece.
    """

    name: str
    shape: tuple[int, ...]
    transform: str
    tensors: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    span: tuple[int, int] | None = None

    @property
    def derived(self) -> str:
        """What decides its numbers besides those of the tensors."""
        part = "" if self.part == (0, 1) else f" part {self.part[0]} of {self.part[1]},"
        return f"{self.name}:{part} {self.transform} of {', '.join(self.tensors)}"


def plain_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """Return plain name -> name in the file. Raises ModelError when two names mean the same tensor."""
    plain: dict[str, str] = {}
    names = list(names)
    outer = wrapper(family, names)
    for name in names:
        short = name.removeprefix(outer)
        short = next((short.removeprefix(p) for p in family.prefixes if short.startswith(p)), short)
        for pattern, replacement in (*FIRST_NAMES, *family.renames):
            short = re.sub(pattern, replacement, short)
        if short in plain:
            raise ModelError(f"tensors {shown(plain[short], 100)} and {shown(name, 100)} are two names of the same weight")
        plain[short] = name
    for name, reason in family.refused.items():
        if name in plain:
            raise ModelError(f"the model has the tensor {plain[name]}: {reason}")
    for name, other in family.instead.items():
        if name in plain:
            plain[other] = plain.pop(name)
    return plain


def check_untied(family: Family, plain: Mapping[str, str]) -> None:
    """Raise ModelError when output words that are not the input words come without the bias that is theirs."""
    for name, other in family.instead.items():
        if other in plain and not plain[other].endswith(name):
            lacks = f"tie_word_embeddings is false, so the bias of the words is {name}, which is missing (transformers takes zeros)"
            raise ModelError(f"config.json: {lacks}; if {shown(plain[other], 100)} is meant, save it under that name as well")


def wrapper(family: Family, names: Iterable[str]) -> str:
    """Return what stands before all names of the model because it was saved inside another module, such as "module."; "" if nothing."""
    anchor = next(iter(family.sources.values())).names[0]
    found = {name.removesuffix(anchor) for name in names if name.endswith(anchor)}
    outer = {next((before.removesuffix(p) for p in family.prefixes if before.endswith(p)), before) for before in found}
    return outer.pop() if len(outer) == 1 else ""


def source_shapes(transform: str, spec: ModelSpec, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that the tensors of a source must have for a stored `shape`."""
    if transform in ("heads", "interleaved"):
        return [(shape[0] * shape[1], *shape[2:])]
    if transform in ("transpose", "columns"):
        return [(shape[-1], math.prod(shape[:-1]))]
    if transform == "patches":
        return [(shape[0], spec.options["channels"], spec.options["patch_size"], spec.options["patch_size"])]
    if transform in POSITIONS:
        registers = spec.options.get("registers", 0)
        rows = 1 + spec.options["table"] ** 2 if "table" in spec.options else shape[0]
        return [(1, rows, shape[1]), (1, 1, shape[1]), (shape[1],), (1, registers, shape[1])]
    return [shape]


def stored(one: Import, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Return the stored weight, float32 and C-contiguous, made of its float32 source tensors, or a part of one; no tensors: zeros."""
    transform, shape, part = one.transform, one.shape, one.part
    if not tensors:
        return np.zeros(shape, np.float32)
    if transform == "plus one":
        return np.ascontiguousarray(tensors[0] + np.float32(1))
    if transform == "columns":
        wide = tensors[0].reshape(len(tensors[0]), part[1], -1)[:, part[0]]
        return np.ascontiguousarray(wide.T).reshape(shape)
    if transform == "interleaved":
        return np.ascontiguousarray(tensors[0].reshape(shape[0], part[1], *shape[1:])[:, part[0]])
    if one.span is not None:
        tensors = [tensors[0][slice(*one.span)]]
    if transform == "transpose":
        return np.ascontiguousarray(tensors[0].T).reshape(shape)  # [hidden, columns] -> [columns, hidden]
    if transform in POSITIONS:
        table, token, bias, *registers = tensors  # [1, positions, hidden], [1, 1, hidden], [hidden], [1, registers, hidden]
        more = registers[0][0] if registers else np.zeros((0, shape[1]), np.float32)
        patches = resized(table[0, 1:], math.isqrt(shape[0] - 1 - len(more)), transform == "positions smooth")
        return np.ascontiguousarray(np.concatenate([table[0, :1] + token[0], more, patches + bias]), np.float32)
    return np.ascontiguousarray(tensors[0]).reshape(shape)


def resized(table: np.ndarray, side: int, smooth: bool) -> np.ndarray:
    """Return a square of rows [old side ** 2, width] with another `side`, by cubic splines.

    Source: interpolate of PyTorch, mode bicubic: Keys' splines with a = -0.75 or, `smooth` (antialias), -0.5 over all rows that a new
    one covers.
    """
    old = math.isqrt(len(table))
    if old == side:
        return table
    scale = old / side
    spread, a = (max(scale, 1.0), -0.5) if smooth else (1.0, -0.75)
    centres = (np.arange(side) + 0.5) * scale - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((side, old))
    reach = math.ceil(2 * spread) + 1
    for offset in range(-reach, reach + 1):
        at = first + offset
        x = np.abs(at - centres) / spread
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
        share = np.where(x <= 1, near, np.where(x < 2, far, 0))
        inside = (at >= 0) & (at < old) | (not smooth)
        np.add.at(weights, (np.arange(side), np.clip(at, 0, old - 1)), np.where(inside, share, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    square = table.reshape(old, old, -1)
    return np.einsum("ai,bj,ijw->abw", weights, weights, square, optimize=True).reshape(side * side, -1)


def match(family: Family, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[Import]:
    """Return how each weight of the store is made, in its order, from tensors of these plain names and shapes.

    Raises ModelError that names missing, unknown and wrongly shaped tensors.
    """
    if spec.layers > len(shapes):
        raise ModelError(f"config.json says {counted(spec.layers, 'layers')}, the files hold {counted(len(shapes), 'tensors')} in all")
    imports: list[Import] = []
    missing: list[str] = []
    for name, weight in named_weights(spec):
        if name.startswith(MODULES):
            continue
        layer = name.split(".")[1] if weight.name != name else ""
        source = family.sources[weight.name].of(layer, shapes)
        absent = source.option is not None and not spec.options[source.option]
        tensors = () if absent else tuple(tensor.format(layer) for tensor in source.names)
        missing += [tensor for tensor in tensors if tensor not in shapes]
        imports.append(Import(name, weight.shape, source.transform, tensors, source.part))
    if missing:
        raise ModelError(f"{len(missing)} of the tensors that config.json asks for are missing: {few(missing)}")
    used = {tensor for one in imports for tensor in one.tensors}
    dropped = {**COMPUTED, **family.dropped}
    unknown = [name for name in shapes if name not in used and not any(re.fullmatch(p, name) for p in dropped)]
    if unknown:
        do = "does" if len(unknown) == 1 else "do"
        raise ModelError(f"{counted(len(unknown), 'tensors')} {do} not belong to the model that config.json describes: {few(unknown)}")
    return _checked(imports, spec, shapes)


def _checked(imports: list[Import], spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[Import]:
    """Return the imports, those of parts that lie one after the other with their spans. Raises ModelError for a tensor of another shape."""
    wanted = [source_shapes(one.transform, spec, one.shape) for one in imports]
    ends: dict[str, int] = {}  # rows of each tensor that the parts up to here take
    for place in sorted(range(len(imports)), key=lambda place: imports[place].part):
        one = imports[place]
        if one.part[1] > 1 and one.transform not in ALTERNATING:
            first = ends.get(one.tensors[0], 0)
            ends[one.tensors[0]] = first + wanted[place][0][0]
            imports[place] = replace(one, span=(first, ends[one.tensors[0]]))
    for one, expected in zip(imports, wanted):
        for tensor, shape in zip(one.tensors, expected):
            rows, *others = (ends.get(tensor, shape[0]), *shape[1:])
            if one.transform == "interleaved":
                rows *= one.part[1]
            if one.transform == "columns":
                rows, others = (rows, [others[0] * one.part[1]]) if others else (rows * one.part[1], [])
            if shapes[tensor] != (rows, *others):
                raise ModelError(f"tensor {tensor} has shape {list(shapes[tensor])}, config.json asks for {[rows, *others]}")
    return imports


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names for an error message."""
    return ", ".join(shown(name, 100) for name in names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
