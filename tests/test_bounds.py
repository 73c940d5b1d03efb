"""No number is larger than Bounds says, of rows that are made to be large; and what may overflow is not called finite."""

import numpy as np
import pytest
from decoders import CASES

from hepti_mpi.engine.bounds import Bounds
from hepti_mpi.models.formats import SCALES, VALUES
from hepti_mpi.models.numerics import ACTIVATIONS, activate
from hepti_mpi.program import ops
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.reference import REFERENCES, Where
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights.slices import DecodingPart

ROWS = 6


def segments(store):
    """Yield the operations of each segment of one rank, with its weights."""
    spec = store.spec
    part = DecodingPart(spec, Plan.lone(spec, store.source_hash), 0)
    for step in part.program:
        if isinstance(step, Compute):
            yield [(op, part.op(op, step.distribution)) for op in step.ops]


class Larger:
    """A store some of whose weights are larger by a factor."""

    def __init__(self, store, wanted, factor):
        self.store, self.wanted, self.factor = store, wanted, factor

    def parts(self, piece):
        parts = dict(self.store.parts(piece))
        name = SCALES if SCALES in parts else VALUES
        if self.wanted in piece.name:
            parts[name] = parts[name].astype(np.float64) * self.factor
        return parts


def safe(store, kept=None):
    """Return whether each last product of a block is told to be finite."""
    return [found for some in segments(kept or store) for bounds in [Bounds(store)] for op, own in some
            if (found := bounds.add(op, own)) or isinstance(op, ops.Out | ops.Mlp)]  # fmt: skip


@pytest.mark.parametrize("format_name", ["f32", "q8", "q4"])
@pytest.mark.parametrize("case", CASES)
def test_no_number_is_larger(store_of, case, format_name):
    store, random = store_of(case, format_name), np.random.default_rng(0)
    at = np.arange(ROWS)
    where, seen = Where(at * 0, at * 0, at, at), 0
    for some in segments(store):
        bounds, values = Bounds(store), {}
        for op, own in some:
            arrays = {role: np.array(piece.decode(store.parts(piece)), np.float64) for role, piece in own.items()}
            for name in op.reads:
                if name not in values:  # of the residual: one number that outdoes the others, or all alike
                    values[name] = random.standard_normal((ROWS, store.spec.hidden))
                    values[name][0], values[name][1, 1:], values[name][2, -1] = 1e6, 1e-6, -1e12
            bounds.add(op, own)
            values.update(zip(op.writes, REFERENCES[type(op)](op, arrays, [values[name] for name in op.reads], where), strict=True))
            for name in op.writes:
                most = bounds.largest.get(name, np.inf)
                assert np.abs(values[name]).max() <= most * (1 + 1e-6), (op.label, name)
                seen += most < np.inf
    assert seen >= 4 * store.spec.layers and all(safe(store))


@pytest.mark.parametrize("wanted, factor", [
    ("norm", 1e28), ("mlp.up", 1e30), ("mlp.down", 1e32), ("attention.o", 1e32), ("attention.v", np.inf), ("attention.q", np.nan),
])  # fmt: skip
def test_what_may_overflow(store_of, wanted, factor):
    store = store_of("llama", "q4")
    told = safe(Larger(store, wanted, factor), store)
    assert not all(told) and len(told) == 2 * store.spec.layers


def test_rows_that_nothing_is_known_of(store_of):
    (some,) = segments(store_of("llama", "q4"))
    bounds = Bounds(store_of("llama", "q4"))
    assert not any(bounds.add(op, own) for op, own in some if not isinstance(op, ops.Norm | ops.AddNorm))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_no_activation_makes_a_number_larger(kind):
    """Which Bounds takes for granted: a square of what is above 0 would not be one."""
    x = np.linspace(-30, 30, 60001)
    assert (np.abs(activate(kind, x)) <= np.abs(x) + 1e-12).all()
