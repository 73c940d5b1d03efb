"""The table of operations: each class has a kernel and a reference, and all that is said of it fits together."""

import inspect

import numpy as np
import pytest
from operations import operations

from hepti_mpi.engine.kernels import KERNELS
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.program import ops
from hepti_mpi.program.operation import Op
from hepti_mpi.program.reference import REFERENCES, Where

SPEC = random_model("tiny-bert").spec
OPERATIONS = operations(SPEC)


def classes():
    found = [value for value in vars(ops).values() if type(value) is type(Op) and issubclass(value, Op)]
    return [kind for kind in found if not inspect.isabstract(kind)]


def test_every_operation_has_a_kernel_and_a_reference():
    assert len(classes()) >= 7
    assert [kind.__name__ for kind in classes() if kind not in KERNELS] == []
    assert [kind.__name__ for kind in classes() if kind not in REFERENCES] == []
    assert {type(op) for op in OPERATIONS.values()} == set(classes())


def test_one_without_a_kernel_would_be_seen(monkeypatch):
    class Rotate(ops.Norm):
        pass

    monkeypatch.setattr(ops, "Rotate", Rotate, raising=False)
    assert [kind for kind in classes() if kind not in KERNELS] == [Rotate]


@pytest.mark.parametrize("label", OPERATIONS)
def test_weights_are_divided_along_the_axis_of_the_operation(label):
    op = OPERATIONS[label]
    for weight, axis in op.weights().values():
        assert axis == (op.axis if weight.split else None)
        assert axis in (None, weight.axes[0])
    assert op.sort() == OPERATIONS[label].sort() and sum(other.sort() == op.sort() for other in OPERATIONS.values()) == 1


def test_operations_of_other_layers_are_as_much_work():
    for one, other in zip(OPERATIONS.values(), operations(SPEC, 2, ("d", "e"), ("f",)).values()):
        assert one != other and one.sort() == other.sort()


def test_products_are_the_matrices_by_the_rows_that_they_read():
    """Each once, Q, K and V together, and what comes last in an MLP by itself; nothing but those is a matrix."""
    found = {label: [[weight.name.split(".", 2)[2] for weight in some] for some in op.products()] for label, op in OPERATIONS.items()}
    assert found["project_qkv"] == [[f"attention.{m}.weight" for m in "qkv"]] and found["out"] == [["attention.o.weight"]]
    assert found["mlp"] == [["mlp.up.weight"], ["mlp.down.weight"]] and found["mix"] == found["add_norm"] == []
    for label, op in OPERATIONS.items():
        every = [weight.name.split(".", 2)[2] for weight, _ in op.weights().values() if weight.inner is not None]
        assert sum(found[label], []) == every


def test_a_cast_rounds():
    cast = OPERATIONS["to_float16"]
    where = Where(*[np.zeros(1)] * 4)
    (short,) = REFERENCES[ops.Cast](cast, {}, [np.array([[1.0001]])], where)
    assert short.dtype == np.float16 and short[0, 0] == 1
    assert (cast.needs().dtype, cast.gives().dtype) == ("float32", "float16")


def test_int8_has_a_scale_for_each_head_of_each_row():
    """What is largest there is 127 of them: nothing is off by more than half of one; what is 0 stays 0, what is no number shows."""
    there, back, where = OPERATIONS["to_int8"], OPERATIONS["from_int8"], Where(*[np.zeros(1)] * 4)
    values = np.random.default_rng(0).standard_normal((3, SPEC.hidden)) * 10.0 ** (np.arange(SPEC.hidden) % 7 - 3)
    values[1] = 0
    numbers, scales = REFERENCES[ops.Cast](there, {}, [values], where)
    assert numbers.dtype == np.int8 and scales.shape == (3, SPEC.heads) and there.widths() == (SPEC.hidden, SPEC.heads)
    (found,) = REFERENCES[ops.Cast](back, {}, [numbers, scales], where)
    largest = np.abs(values.reshape(3, SPEC.heads, -1)).max(axis=2)
    np.testing.assert_allclose(scales, np.maximum(largest, 1e-30) / 127, rtol=1e-6)
    assert (np.abs(found - values) <= 0.501 * np.repeat(scales, there.block, axis=1)).all() and not found[1].any()
    assert [form.dtype for form in there.writes_as()] == ["int8", "float32"] == [form.dtype for form in back.reads_as()]
