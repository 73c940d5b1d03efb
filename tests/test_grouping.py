"""Parts of groups of query heads: which heads of K and V they read, what pads them, what that takes, and stores that count groups."""

import json
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
from clusters import cluster
from layers import odd_model
from made_plans import plan_of

from hepti_mpi.errors import PlanError, StoreError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.planning import decoding
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.stepping import Steps
from hepti_mpi.program import grouping
from hepti_mpi.program import plan as plans
from hepti_mpi.weights import hdf5, writing
from hepti_mpi.weights.slices import DecodingPart, all_weights, span
from hepti_mpi.weights.store import Store

SMOL = random_model("smollm2-135m").spec  # 9 heads read 3
TEXT = Demand(1, 128, 128, 128, kept=1000, prompt=128, answer=128)


def parted(spec, heads, columns=None):
    equal = (1,) * len(heads)
    return replace(plan_of(spec, ("heads", "columns"), heads, columns or equal, equal, total=1), heads=heads)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_padded_heads_read_what_they_read_before(group):
    total = 4 * group
    for start in range(total):
        for stop in range(start, total + 1):
            first, last = grouping.read(start, stop, group)
            assert {head // group for head in range(start, stop)} == set(range(first, last))
            front, back = grouping.padding(start, stop, group)
            every = front + stop - start + back
            assert stop == start or not every % (last - first), "a kernel takes as many for each"
            for head in range(start, stop):
                assert (front + head - start) // (every // (last - first)) == head // group - first
            counts = np.array([[start, stop - start, total - stop]])
            read, attending = (each[0, 1] for each in grouping.shared(counts, group, axis=1))
            assert (read, attending) == (last - first, every)


def test_a_rank_reads_keys_and_values_of_all_its_heads():
    plan = parted(SMOL, (5, 4))
    plans.check(plan, SMOL, "hash", 2)
    for rank, (heads, kv_heads) in enumerate((((0, 5), (0, 2)), ((5, 9), (1, 3)))):
        part = DecodingPart(SMOL, plan, rank)
        every = (piece for piece in part.slices if piece.name.startswith("layers.7.attention."))
        held = {piece.name: (piece.first, piece.first + piece.shape[0]) for piece in every}
        assert [held[f"layers.7.attention.{m}.weight"] for m in "qkvo"] == [heads, kv_heads, kv_heads, heads]
        assert (part.computed("heads"), part.computed("kv_heads")) == (heads[1] - heads[0], 2)


def test_only_texts_may_be_cut_inside_a_group():
    embedding = replace(SMOL, head="none", back=())
    assert (SMOL.head_granule, embedding.head_granule) == (1, 3)
    with pytest.raises(PlanError, match="heads do not start at multiples of 3"):
        plans.check(parted(embedding, (5, 4)), embedding, "hash", 2)
    plans.check(parted(embedding, (6, 3)), embedding, "hash", 2)


def test_what_is_computed_and_kept_twice_has_its_price():
    """Of two ranks with 5 and 4 of 9 heads both have two of three of K and V, and attend by six; with 6 and 3 one has that."""
    steps = Steps(SMOL, cluster([20.0, 20.0], latency=1e-6), 1, 4000)
    ends = ((6, 3), (5, 4), (3, 6))
    whole, parts, other = steps.each([parted(SMOL, heads) for heads in ends])
    assert whole == pytest.approx(other) and parts < whole, "Q and O are less for the rank that has most"


@pytest.mark.parametrize("seconds, groups", [(0.0, False), (1e-3, True)])
def test_groups_stay_whole_where_parts_of_them_gain_nothing(seconds, groups):
    """`seconds`: that a call takes, and about as long the nodes that lay parts of a group out."""
    profile = cluster([20.0, 20.0], latency=1e-6)
    profile = replace(profile, nodes=tuple(replace(one, segment_seconds=seconds) for one in profile.nodes))
    heads = decoding.decide("tensor", SMOL, "0" * 64, profile, TEXT).chosen.plan.heads
    assert sorted(heads) == ([3, 6] if groups else [4, 5])


def test_more_ranks_than_heads_of_keys_and_values():
    profile = cluster([5.0] * 6, latency=1e-6)
    chosen = decoding.decide("hepti", SMOL, "0" * 64, profile, replace(TEXT, kept=20000)).chosen
    assert min(chosen.plan.heads) > 0 and sum(chosen.plan.heads) == 9
    read, _ = grouping.shared(np.array(chosen.plan.heads), 3)
    assert read.sum() > 3
    alone = decoding.decide("hepti", SMOL, "0" * 64, cluster([5.0]), replace(TEXT, kept=20000)).chosen
    assert sum(chosen.memory) > alone.memory[0] + 20000 * (read.sum() - 3) * 2 * 4 * 64 * 30


def grouped_as_before(path):
    """Turn a store into one of version 2, which counts heads of keys and values, with those of queries that read them."""
    with Store(path) as store:
        spec, files, group = store.spec, store.files, store.spec.group
        wide = [weight.name for weight in all_weights(spec) if weight.split == "heads"]
    with h5py.File(path, "r+") as file:
        text = json.dumps(spec.to_json() | {"heads": spec.kv_heads})
        file.attrs.update(spec=text, format_version=2, checksum=np.uint32(hdf5.head_checksum(text, "hash", files)))
        for name in wide:
            values, whole = file[f"weights/{name}"][()], file[f"weights/{name}"].attrs["whole"]
            del file[f"weights/{name}"], file[f"checksums/{name}"]
            values = values.reshape(len(values) // group, group * values.shape[1], *values.shape[2:])
            made = file.create_dataset(f"weights/{name}", data=values)
            made.attrs.update(first=0, count=len(values), whole=whole // group)
            sums = np.array([zlib.crc32(np.ascontiguousarray(one).data) for one in values], np.uint32)
            file.create_dataset(f"checksums/{name}", data=sums)


def test_stores_that_count_groups_are_read(tmp_path):
    path, model = tmp_path / "m.h5", odd_model("grouped")
    writing.write(path, model)
    grouped_as_before(path)
    right = dict(model.weights())
    with Store(path) as store:
        assert store.spec == model.spec and store.spec.heads == 9
        for weight in all_weights(store.spec):
            if weight.split == "heads":
                for first, stop in ((0, 9), (4, 9), (2, 5), (7, 8)):
                    piece = span(weight, first, stop)
                    store.verify([piece])
                    np.testing.assert_array_equal(store.array(piece), right[weight.name][first:stop])
    with h5py.File(path, "r+") as file:  # a number of the first group's last head
        name = "layers.1.attention.q.weight"
        file[f"weights/{name}"][0, -1] += 1
    with Store(path) as store:
        weight = store.weights[name]
        store.verify([span(weight, 3, 5)])
        with pytest.raises(StoreError, match="checksum 0 of tensor"):
            store.verify([span(weight, 1, 4)])
