"""Models of ONNX as the bytes that ONNX Runtime reads: nodes, tensors, graphs. Knows onnx.proto's fields that our graphs have; knows no
operation.

The onnx package writes the same bytes, but importing it took a tenth of a rank's start. Source: onnx/onnx.proto, whose numbers these are.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10  # TensorProto.DataType
ELEMENT = {
    np.dtype(kind): number for number, kind in (
        (FLOAT, "float32"), (UINT8, "uint8"), (INT8, "int8"), (INT32, "int32"), (INT64, "int64"), (BOOL, "bool"), (FLOAT16, "float16"),
    )
}  # fmt: skip
IR_VERSION = 9
EXTERNAL = 1  # TensorProto.DataLocation
NUMBER, BYTES, FIXED = 0, 2, 5  # how a field's value stands behind its key
AS_FLOAT, AS_INT, AS_STRING, AS_GRAPH, AS_INTS = 1, 2, 3, 5, 7  # AttributeProto.AttributeType
SHORT = [bytes((number,)) for number in range(128)]  # whole numbers of one byte


class Node(NamedTuple):
    """One operation, with the names of its `attributes`; `content`: the bytes that say the rest too."""

    kind: str
    domain: str
    attributes: tuple[str, ...]
    content: bytes


class WholeGraph(NamedTuple):
    """A graph with its inputs, outputs and constants."""

    nodes: tuple[Node, ...]
    content: bytes


def node(kind: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: object) -> Node:
    """Return a node; attributes that are None are left out. Raises TypeError for one that is no number, word, graph or list of numbers."""
    given = sorted((name, value) for name, value in attributes.items() if value is not None)
    content = b"".join(
        [*(_text(1, name) for name in inputs), *(_text(2, name) for name in outputs), _text(4, kind),
         *(_bytes(5, _attribute(name, value)) for name, value in given), _text(7, domain)]
    )  # fmt: skip
    return Node(kind, domain, tuple(name for name, _ in given), content)


def value(name: str, kind: int, dims: Sequence[int | None] | None = None) -> bytes:
    """Return what says of an input or output of a graph which type of numbers it has, and how many of each dimension, None: any number;
    `dims` None: any dimensions."""
    tensor = _number(1, kind)
    if dims is not None:
        tensor += _bytes(2, b"".join(_bytes(1, b"" if size is None else _number(1, size)) for size in dims))
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def constant(name: str, values: np.ndarray) -> bytes:
    """Return the tensor of an array, of a type that ELEMENT has."""
    return _dims(values.shape) + _number(2, ELEMENT[values.dtype]) + _text(8, name) + _bytes(9, values.tobytes())


def stored(name: str, kind: int, shape: Sequence[int], location: Mapping[str, object]) -> bytes:
    """Return a tensor whose numbers lie in a file; `location`: which one, and where in it."""
    places = b"".join(_bytes(13, _text(1, key) + _text(2, str(said))) for key, said in location.items())
    return _dims(shape) + _number(2, kind) + _text(8, name) + places + _number(14, EXTERNAL)


def graph(
    nodes: Iterable[Node], name: str, inputs: Iterable[bytes], outputs: Iterable[bytes], constants: Iterable[bytes] = ()
) -> WholeGraph:  # fmt: skip
    """Return a graph; `inputs` and `outputs` as of `value`, `constants` as of `constant` or `stored`."""
    kept = tuple(nodes)
    parts = [*(_bytes(1, one.content) for one in kept), _text(2, name)]
    for field, some in ((5, constants), (11, inputs), (12, outputs)):
        parts += [_bytes(field, one) for one in some]
    return WholeGraph(kept, b"".join(parts))


def model(made: WholeGraph, opsets: Mapping[str, int]) -> bytes:
    """Return the model of a graph; `opsets`: the version of each domain whose operations it has."""
    domains = b"".join(_bytes(8, _text(1, domain) + _number(2, version)) for domain, version in opsets.items())
    return _number(1, IR_VERSION) + _bytes(7, made.content) + domains


def _attribute(name: str, given: object) -> bytes:
    if isinstance(given, (int, np.integer)):
        kind, said = AS_INT, _number(3, int(given))
    elif isinstance(given, (float, np.floating)):
        kind, said = AS_FLOAT, _varint(2 << 3 | FIXED) + struct.pack("<f", float(given))
    elif isinstance(given, str):
        kind, said = AS_STRING, _text(4, given)
    elif isinstance(given, WholeGraph):
        kind, said = AS_GRAPH, _bytes(6, given.content)
    elif isinstance(given, (list, tuple)) and given and all(isinstance(one, (int, np.integer)) for one in given):
        kind, said = AS_INTS, b"".join(_number(8, int(one)) for one in given)
    else:
        raise TypeError(f"attribute {name} is {given!r}")
    return _text(1, name) + said + _number(20, kind)


def _dims(shape: Sequence[int]) -> bytes:
    return b"".join(_number(1, size) for size in shape)


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _bytes(field: int, content: bytes) -> bytes:
    return SHORT[field << 3 | BYTES] + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3 | NUMBER) + _varint(number)


def _varint(number: int) -> bytes:
    """Return a whole number of 64 bits, seven in a byte, the last ones first; negative ones as their complement."""
    if 0 <= number < 128:
        return SHORT[number]
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
