"""ONNX models as the bytes of their files: the few messages of onnx.proto that segments need.

Written here and not with the package onnx: to import that takes a sixth of a rank's start and 14 MiB of its memory. Knows the wire format
of Protocol Buffers and the numbers of fields; does not know what a node computes.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, https://protobuf.dev/programming-guides/encoding
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10  # types of numbers
TYPES = {
    np.dtype(np.float32): FLOAT,
    np.dtype(np.float16): FLOAT16,
    np.dtype(np.uint8): UINT8,
    np.dtype(np.int8): INT8,
    np.dtype(np.int64): INT64,
    np.dtype(np.int32): INT32,
    np.dtype(np.bool_): BOOL,
}
IR_VERSION = 9
IN_A_FILE = 1  # where the numbers of a tensor are, if not in the model
OF_FLOAT, OF_INT, OF_STRING, OF_GRAPH, OF_INTS = 1, 2, 3, 5, 7  # types of attributes
VARINT, CHUNK, FOUR_BYTES = 0, 2, 5  # what a field's number is followed by

Message = list[bytes]  # pieces, which are copied once, into the file


@dataclass(frozen=True)
class Value:
    """An input or output. `dims`: None in it: any size; in its place: of any rank."""

    name: str
    type: int
    dims: Sequence[int | None] | None = None

    def message(self) -> Message:
        tensor = _int(1, self.type)
        if self.dims is not None:
            tensor += _chunk(2, _each(1, [[] if size is None else _int(1, size) for size in self.dims]))
        return _text(1, self.name) + _chunk(2, _chunk(1, tensor))


@dataclass(frozen=True)
class Tensor:
    """A constant: its numbers, or where they are: in which file and at which bytes of it."""

    name: str
    type: int
    dims: Sequence[int]
    content: bytes = b""
    place: Mapping[str, str] = field(default_factory=dict)

    def message(self) -> Message:
        message = [piece for size in self.dims for piece in _int(1, size)] + _int(2, self.type) + _text(8, self.name)
        if not self.place:
            return message + _chunk(9, [self.content])
        return message + _each(13, [_text(1, key) + _text(2, value) for key, value in self.place.items()]) + _int(14, IN_A_FILE)


@dataclass(frozen=True)
class Node:
    """One computing. `attributes`: whole numbers, other numbers, words, lists of whole numbers, or graphs."""

    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def message(self) -> Message:
        message = [piece for name in self.inputs for piece in _text(1, name)] + [piece for name in self.outputs for piece in _text(2, name)]
        given = [_attribute(name, value) for name, value in sorted(self.attributes.items())]
        return message + _text(4, self.kind) + _each(5, given) + _text(7, self.domain)


@dataclass(frozen=True)
class Body:
    """A graph: what is computed, from what, and the constants of it."""

    name: str
    nodes: Sequence[Node]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    tensors: Sequence[Tensor] = ()

    def message(self) -> Message:
        message = _each(1, [node.message() for node in self.nodes]) + _text(2, self.name)
        message += _each(5, [tensor.message() for tensor in self.tensors])
        return message + _each(11, [value.message() for value in self.inputs]) + _each(12, [value.message() for value in self.outputs])


def model(body: Body, opsets: Mapping[str, int]) -> bytes:
    """Return a model's file. `opsets`: the version of each domain's operators."""
    told = [_text(1, domain) + _int(2, version) for domain, version in opsets.items()]
    return b"".join(_int(1, IR_VERSION) + _chunk(7, body.message()) + _each(8, told))


def _attribute(name: str, value: Any) -> Message:
    message = _text(1, name)
    match value:
        case Integral():
            return message + _int(3, int(value)) + _int(20, OF_INT)
        case str():
            return message + _text(4, value) + _int(20, OF_STRING)
        case Body():
            return message + _chunk(6, value.message()) + _int(20, OF_GRAPH)
        case list() | tuple():
            return message + [piece for one in value for piece in _int(8, one)] + _int(20, OF_INTS)
        case _:
            return [*message, _varint(2 << 3 | FOUR_BYTES), struct.pack("<f", value), *_int(20, OF_FLOAT)]


def _varint(value: int) -> bytes:
    """Return a whole number, seven bits in each byte; one below 0 as if it had 64 bits."""
    value, written = value & (1 << 64) - 1, bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def _int(number: int, value: int) -> Message:
    return [_varint(number << 3 | VARINT) + _varint(value)]


def _text(number: int, value: str) -> Message:
    return _chunk(number, [value.encode()])


def _chunk(number: int, message: Message) -> Message:
    return [_varint(number << 3 | CHUNK) + _varint(sum(map(len, message))), *message]


def _each(number: int, messages: Iterable[Message]) -> Message:
    return [piece for message in messages for piece in _chunk(number, message)]
