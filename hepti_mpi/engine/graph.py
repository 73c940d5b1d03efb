"""The ONNX graph of a segment while it is written: nodes, weights that stay in the store's file, constants. Knows no operation."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from hepti_mpi.engine import onnxfile
from hepti_mpi.engine.onnxfile import Body, Node, Tensor, Value
from hepti_mpi.engine.packing import asked
from hepti_mpi.models.formats import VALUES
from hepti_mpi.weights.slices import Slice
from hepti_mpi.weights.store import Store

MICROSOFT = "com.microsoft"
DTYPES = {"float32": onnxfile.FLOAT, "float16": onnxfile.FLOAT16, "int8": onnxfile.INT8, "uint8": onnxfile.UINT8}


class Graph:
    """Collects nodes, initializers and inputs of one segment.

    `rounded`: what values were rounded to that several products read, by what decides it; `written`: what else is written once.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.initializers: dict[str, Tensor] = {}
        self.indexes: dict[str, str] = {}  # what is asked about the rows of a batch: of which kind
        self.written: set[str] = set()
        self.rounded: dict[tuple[object, ...], tuple[str, str]] = {}
        self.count = 0

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, domain: str = "", **attributes: Any) -> str:
        if outputs is None:
            self.count += 1
            outputs = [f"{kind}_{self.count}"]
        self.nodes.append(Node(kind, tuple(inputs), tuple(outputs), domain, attributes))
        return outputs[0]

    def either(self, condition: str, one: Callable[[], str], other: Callable[[], str]) -> str:
        """Write two ways to a float32 value, of which `condition` decides at each run; return what it is called."""
        ways, outside = [], self.nodes
        for write in (one, other):
            self.nodes = []
            found = Value(write(), onnxfile.FLOAT)
            ways.append(Body("way", self.nodes, [], [found]))
        self.nodes = outside
        return self.node("If", [condition], then_branch=ways[0], else_branch=ways[1])

    def ask(self, kind: str, of: object = None) -> str:
        """Declare an input that says something about the rows of a batch, see packing."""
        name = asked(kind, of)
        self.indexes[name] = kind
        return name

    def weight(self, store: Store, piece: Slice, shape: tuple[int, ...], part: str = VALUES) -> str:
        """Declare a part of a slice of the store, viewed as `shape`, as an initializer that lives in the store's file."""
        region, kind, name = store.region(piece, part), piece.parts[part].kind, piece.name if part == VALUES else f"{piece.name}.{part}"
        assert kind.itemsize * prod(shape) == region.bytes
        place = {"location": store.file.name, "offset": str(region.offset), "length": str(region.bytes)}
        self.initializers[name] = Tensor(name, DTYPES[kind.name], shape, place=place)
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers[name] = Tensor(name, onnxfile.TYPES[values.dtype], values.shape, values.tobytes())
        return name

    def body(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> Body:
        """Return what was written, as a graph from `inputs` to `outputs`."""
        return Body(name, self.nodes, inputs, outputs, list(self.initializers.values()))
