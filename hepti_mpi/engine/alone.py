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
    """Return the last hidden state [rows, hidden] of the embedded rows of requests of `lengths` rows. Raises StoreError."""
    spec = store.spec
    plan = Plan(spec.name, store.source_hash, (("local", "rows"),) * spec.layers, (0,), (0,), (len(embedded),), ("here",), ("packed",))
    part, values = Part(spec, plan, 0), {EMBEDDED: np.ascontiguousarray(embedded, np.float32)}
    rows = Rows(tuple(lengths), 0, len(embedded))
    for step in part.program:
        if isinstance(step, Sync):
            values.update({into: values[name] for name, into in zip(step.reads, step.writes, strict=True)})
            continue
        segment, asked = build(step, store, part, "packed", threads), dict[str, np.ndarray]()
        for op in step.ops:
            asked.update(rows.inputs(op))
        widths = {name: width for op in step.ops for name, width in zip(op.writes, op.widths(), strict=True)}
        made = {name: np.empty((len(embedded), widths[name]), np.float32) for name in step.writes}
        run = segment.bind(values | asked | made, False)
        if run is not None:
            run()
        values.update(made)
    return values[RESULT]
