"""The layers of a store in this process alone, without MPI: what its weights answer, exchanges left out. Knows no plan but its own."""

from collections.abc import Sequence

import numpy as np

from hepti_mpi.engine.packing import Rows
from hepti_mpi.engine.sessions import build
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import EMBEDDED, RESULT, Sync
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store


def last_hidden_state(store: Store, embedded: np.ndarray, lengths: Sequence[int], threads: int = 1) -> np.ndarray:
    """Return the last hidden state [rows, hidden] of the embedded rows of requests of `lengths` rows: layer by layer, so that there is
    one at a time in memory. Raises StoreError."""
    hidden = np.ascontiguousarray(embedded, np.float32)
    for layer in range(store.spec.layers):
        hidden = one_layer(store, layer, hidden, lengths, threads)
    return hidden


def one_layer(store: Store, layer: int, hidden: np.ndarray, lengths: Sequence[int], threads: int) -> np.ndarray:
    """Return what a layer makes of rows [rows, hidden]; the last one with the norm behind it."""
    spec, rows = store.spec, Rows(tuple(lengths), 0, len(hidden))
    plan = Plan.lone(spec, store.source_hash, len(hidden), range(layer, layer + 1))
    part, values = Part(spec, plan, 0), {EMBEDDED: hidden}
    for step in part.program:
        if isinstance(step, Sync):
            values.update({into: values[name] for name, into in zip(step.reads, step.writes, strict=True)})
            continue
        segment, asked = build(step, store, part.held(step), part.heads, "packed", threads), dict[str, np.ndarray]()
        for op in step.ops:
            asked.update(rows.inputs(op, segment.tables.get(op)))
        widths = {name: width for op in step.ops for name, width in zip(op.writes, op.widths(), strict=True)}
        made = {name: np.empty((len(hidden), widths[name]), np.float32) for name in step.writes}
        run = segment.bind(values | asked | made)
        assert run is not None
        run()
        values.update(made)
    return values[RESULT]
