"""ONNX models as bytes: the few messages that graphs here are made of. Knows their fields and protobuf's encoding; knows no operator.

The package onnx, which has all messages, takes longer to import than ONNX Runtime and NumPy together, and more of a rank's memory than a
small model. Sources: onnx.proto of ONNX 1.17, whose names these are; protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10  # TensorProto.DataType: kinds of elements
ELEMENT = {np.dtype(name): kind for name, kind in (("float32", FLOAT), ("float16", FLOAT16), ("int8", INT8), ("uint8", UINT8),
                                                   ("int64", INT64), ("int32", INT32), ("bool", BOOL))}  # fmt: skip
EXTERNAL = 1  # TensorProto.DataLocation
OF_FLOAT, OF_INT, OF_GRAPH, OF_INTS = 1, 2, 5, 7  # AttributeProto.AttributeType
VARINT, SIZED, FIXED32 = 0, 2, 5  # how a field is written
COPIED_BYTES = 1 << 12  # larger arrays are not copied before the model is put together

Part = bytes | memoryview


@dataclass(frozen=True)
class NodeProto:
    """A node, and what decides how young an operator set it wants: the names of its attributes."""

    op_type: str
    domain: str
    attributes: tuple[str, ...]
    content: bytes


@dataclass(frozen=True)
class TensorProto:
    """An array, or where a file has it, in parts that are one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class GraphProto:
    """A graph in parts; `node`: the nodes of it, without those of graphs in them."""

    node: tuple[NodeProto, ...]
    parts: tuple[Part, ...]


def _varint(number: int) -> bytes:
    if 0 <= number < 128:
        return bytes((number,))
    number, found = number & (1 << 64) - 1, bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(number)


def _head(field: int, size: int) -> bytes:
    return _varint(field << 3 | SIZED) + _varint(size)


def _sized(field: int, content: bytes) -> bytes:
    return _head(field, len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _sized(field, text.encode())


def _inside(field: int, parts: Sequence[Part]) -> list[Part]:
    """Return a message in parts as a field of another one."""
    return [_head(field, sum(map(len, parts))), *parts]


def make_node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: object) -> NodeProto:
    """Return a node; an attribute is a number, whole numbers or a graph. Raises TypeError for another one."""
    content = [*(_text(1, name) for name in inputs), *(_text(2, name) for name in outputs), _text(4, op_type)]
    content += (_sized(5, _attribute(name, attributes[name])) for name in sorted(attributes))
    return NodeProto(op_type, domain, tuple(attributes), b"".join([*content, _text(7, domain)]))


def _attribute(name: str, value: object) -> bytes:
    if isinstance(value, Integral):
        content, kind = _number(3, int(value)), OF_INT
    elif isinstance(value, Real):
        content, kind = _varint(2 << 3 | FIXED32) + struct.pack("<f", float(value)), OF_FLOAT
    elif isinstance(value, GraphProto):
        content, kind = b"".join(_inside(6, value.parts)), OF_GRAPH
    elif isinstance(value, list | tuple) and value and all(isinstance(one, Integral) for one in value):
        content, kind = b"".join(_number(8, int(one)) for one in value), OF_INTS
    else:
        raise TypeError(f"an attribute {name} of {type(value).__name__} is not written")
    return _text(1, name) + content + _number(20, kind)


def make_value_info(name: str, element: int, shape: Sequence[int | None] | None) -> bytes:
    """Return an input or an output; `shape`: None where nothing is known of it, each None in it an axis of any size."""
    dims = None if shape is None else b"".join(_sized(1, b"" if size is None else _number(1, size)) for size in shape)
    tensor = _number(1, element) + (b"" if dims is None else _sized(2, dims))
    return _text(1, name) + _sized(2, _sized(1, tensor))


def make_tensor(name: str, values: np.ndarray) -> TensorProto:
    """Return an initializer with `values`, which are not changed until the model is made."""
    values = np.asarray(values, order="C")
    content: Part = values.tobytes() if values.nbytes < COPIED_BYTES else values.reshape(-1).view(np.uint8).data
    return TensorProto((_begin(name, ELEMENT[values.dtype], values.shape) + _head(9, values.nbytes), content))


def make_external_tensor(name: str, element: int, shape: Sequence[int], location: str, offset: int, length: int) -> TensorProto:
    """Return an initializer whose `length` bytes are at `offset` of the file `location`."""
    facts = (("location", location), ("offset", str(offset)), ("length", str(length)))
    where = b"".join(_sized(13, _text(1, key) + _text(2, value)) for key, value in facts)
    return TensorProto((_begin(name, element, shape) + where + _number(14, EXTERNAL),))


def _begin(name: str, element: int, shape: Sequence[int]) -> bytes:
    return b"".join(_number(1, size) for size in shape) + _number(2, element) + _text(8, name)


def make_graph(
    nodes: Sequence[NodeProto], name: str, inputs: Sequence[bytes], outputs: Sequence[bytes], initializers: Sequence[TensorProto] = ()
) -> GraphProto:  # fmt: skip
    """Return a graph; `inputs` and `outputs` as make_value_info returns them."""
    parts: list[Part] = [_sized(1, node.content) for node in nodes]
    parts.append(_text(2, name))
    for tensor in initializers:
        parts += _inside(5, tensor.parts)
    parts += [_sized(field, value) for field, values in ((11, inputs), (12, outputs)) for value in values]
    return GraphProto(tuple(nodes), tuple(parts))


def make_model(graph: GraphProto, opsets: Sequence[tuple[str, int]], ir_version: int) -> bytes:
    """Return a model as it stands in a file; `opsets`: of each domain the version."""
    parts = [_number(1, ir_version), *_inside(7, graph.parts)]
    parts += [_sized(8, _text(1, domain) + _number(2, version)) for domain, version in opsets]
    return b"".join(parts)
