"""What embedding and head take: counted by hand."""

from dataclasses import replace

import pytest

from hepti_mpi.cluster.profile import Edges
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.steps import Dense, LayerNorm, Normalize, Words
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.edges import SORTED, edge_seconds
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.planning.search import choose

BERT, VIT = (random_model(name).spec for name in ("tiny-bert", "tiny-vit"))
ONES = Edges(element=1e-9, mac=1e-11, request=1e-5, batch=1e-4)
LENGTHS = (3, 9, 4)


HIDDEN, WORDS = BERT.hidden, BERT.numbers("ids")
POOLER, CLASSES = Dense("head.pooler", HIDDEN, HIDDEN, "tanh"), Dense("head.classes", HIDDEN, 3)
TRANSFORM = (Dense("head.transform", HIDDEN, HIDDEN, "gelu"), LayerNorm("head.norm", HIDDEN, 1e-12))


@pytest.mark.parametrize("head, back, macs, elements", [
    ("sentence", (Normalize("head.modules.0"),), 0, 0),
    ("sentence", (Dense("head.modules.0", HIDDEN, 5, residual=True),), 3 * 2 * 5 * HIDDEN, 0),
    ("none", (), 0, 0),
    ("pooler", (POOLER,), 3 * HIDDEN * HIDDEN, 0),
    ("sequence-classes", (POOLER, CLASSES), 3 * HIDDEN * (HIDDEN + 3), 0),
    ("token-classes", (CLASSES,), 16 * 3 * HIDDEN, 0),
    ("masked-words", (*TRANSFORM, Words("head.words", WORDS, HIDDEN, tied=True)), 3 * HIDDEN * (HIDDEN + WORDS), SORTED),
])  # fmt: skip
def test_heads_of_tokens(head, back, macs, elements):
    spec = replace(BERT, head=head, back=back)
    expected = 1e-4 + 3e-5 + 16 * HIDDEN * 1e-9 + macs * 1e-11 + 3 * WORDS * elements * 1e-9
    assert edge_seconds(spec, ONES, LENGTHS) == pytest.approx(expected)


def test_patches_are_a_product():
    hidden, inner = VIT.hidden, VIT.options["channels"] * VIT.options["patch_size"] ** 2
    spec = replace(VIT, head="none", back=())
    assert edge_seconds(spec, ONES, (5,)) == pytest.approx(1e-4 + 1e-5 + 5 * hidden * 1e-9 + 5 * hidden * inner * 1e-11)


def test_they_are_in_the_price():
    from clusters import cluster

    bare = cluster((9, 9))
    whole = replace(bare, edges=ONES)
    plan = choose(BERT, "hash", bare, Demand(16, mode="packed")).chosen
    priced = choose(BERT, "hash", whole, Demand(16, mode="packed")).chosen
    assert priced.plan == plan.plan
    assert priced.price.seconds - plan.price.seconds == pytest.approx(edge_seconds(BERT, ONES, (16,)))
    assert (priced.price.compute == plan.price.compute).all()
    assert Pricer(BERT, whole, 16, 4, 4).edges == pytest.approx(edge_seconds(BERT, ONES, (4, 4, 4, 4)))
