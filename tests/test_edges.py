"""What embedding and head take: counted by hand."""

from dataclasses import replace

import pytest

from hepti_mpi.cluster.profile import Edges
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning.edges import SORTED, edge_seconds
from hepti_mpi.planning.price import Pricer
from hepti_mpi.planning.request import Request
from hepti_mpi.planning.search import choose

BERT, VIT = (random_model(name).spec for name in ("tiny-bert", "tiny-vit"))
ONES = Edges(element=1e-9, mac=1e-11, request=1e-5, batch=1e-4)
LENGTHS = (3, 9, 4)


@pytest.mark.parametrize("fields, macs, elements", [
    ({"head": "sentence"}, 0, 0),
    ({"head": "none"}, 0, 0),
    ({"head": "sequence-classes", "labels": ("a", "b", "c")}, 3 * 3, 0),
    ({"head": "token-classes", "labels": ("a", "b", "c")}, 16 * 3, 0),
    ({"head": "masked-words"}, "words", SORTED),
])  # fmt: skip
@pytest.mark.parametrize("pooler", [False, True])
def test_heads_of_tokens(fields, macs, elements, pooler):
    spec = replace(BERT, options=BERT.options | {"pooler": pooler}, **fields)
    hidden, words = spec.hidden, spec.options["vocabulary"]
    counted = 3 * hidden * (hidden + words) if macs == "words" else macs * hidden
    counted += 3 * hidden * hidden * pooler
    expected = 1e-4 + 3e-5 + 16 * hidden * 1e-9 + counted * 1e-11 + 3 * words * elements * 1e-9
    assert edge_seconds(spec, ONES, LENGTHS) == pytest.approx(expected)


def test_patches_are_a_product():
    hidden, inner = VIT.hidden, VIT.options["channels"] * VIT.options["patch_size"] ** 2
    spec = replace(VIT, head="none", options=VIT.options | {"pooler": False})
    assert edge_seconds(spec, ONES, (5,)) == pytest.approx(1e-4 + 1e-5 + 5 * hidden * 1e-9 + 5 * hidden * inner * 1e-11)


def test_they_are_in_the_price():
    from clusters import cluster

    bare = cluster((9, 9))
    whole = replace(bare, edges=ONES)
    plan = choose(BERT, "hash", bare, Request(16, mode="packed")).chosen
    priced = choose(BERT, "hash", whole, Request(16, mode="packed")).chosen
    assert priced.plan == plan.plan
    assert priced.price.seconds - plan.price.seconds == pytest.approx(edge_seconds(BERT, ONES, (16,)))
    assert (priced.price.compute == plan.price.compute).all()
    assert Pricer(BERT, whole, 16, 4, 4).edges == pytest.approx(edge_seconds(BERT, ONES, (4, 4, 4, 4)))
