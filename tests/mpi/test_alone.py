"""Ranks that share a host: one of them may have all its cores, the others rest; measured, chosen and right."""

import os
from dataclasses import replace

import numpy as np
import pytest
from test_answers import loaded, opened

from hepti_mpi.cluster import load
from hepti_mpi.cluster.profile import scaled
from hepti_mpi.engine import loading
from hepti_mpi.engine.machine import measured_profile
from hepti_mpi.planning.demand import Demand
from hepti_mpi.tuning.settle import settle

ROWS = 24


@pytest.fixture(scope="module")
def measured(machine, folder):
    store = opened(folder, "tiny-bert", machine.world.rank, machine.world)
    return store, measured_profile(machine, store.spec, None, True, False, lambda _: None)


def faster_alone(profile, times):
    """The profile where a rank that has its host is so many times as fast as one beside others."""
    nodes = [replace(node, alone=node.alone and replace(node, threads=node.alone.threads, alone=None)) for node in profile.nodes]
    alone = [scaled(replace(profile, nodes=(node.alone or node,)), [1 / times]).nodes[0] for node in nodes]
    return replace(profile, nodes=tuple(replace(node, alone=node.alone and one) for node, one in zip(nodes, alone)))


def test_it_is_measured(machine, measured):
    _, profile = measured
    for node in profile.nodes:
        assert (node.alone is not None) == (machine.world.size > 1)
        assert node.alone is None or (node.alone.threads, node.alone.host) == (2, node.host)
    assert min(profile.edges.element, profile.edges.mac) > 0 <= profile.edges.batch
    assert len({str(other) for other in machine.world.gather_all(profile.to_json())}) == 1


def test_a_profile_of_a_busy_machine_is_measured_again(machine, measured, tmp_path):
    store, profile = measured
    path, root = tmp_path / "p.json", machine.world.rank == 0
    said = []

    def saved(by, required=False):
        said.clear()
        if root:
            undisturbed = replace(profile, nodes=tuple(replace(node, other_work=0.0) for node in profile.nodes))
            scaled(undisturbed, [by] * len(profile.nodes)).save(path)
        machine.world.barrier()
        return measured_profile(machine, store.spec, path if root else None, False, required, said.append)

    saved(50.0)  # so much that nothing which runs beside the tests hides it
    assert "had other work when that was measured" in said[0] and said[1].startswith("measuring ")
    quick = saved(0.2).nodes[0].gemm_seconds_per_weight  # now it has other work, which says nothing of then
    assert not said and quick == scaled(profile, [0.2] * len(profile.nodes)).nodes[0].gemm_seconds_per_weight
    if machine.world.size == 1:
        saved(10.0, required=True)
        assert not said, "who names a profile means it"


def test_a_host_that_had_other_work_is_measured_again_once_it_has_less(machine, measured, tmp_path, monkeypatch):
    """Kernels and waiting are timed in other moments than what a later job looks at: others that were there all the while made a batch
    2.7 times as long, and nobody saw it."""
    store, profile = measured
    path, root = tmp_path / "p.json", machine.world.rank == 0
    for had, have, again in ((0.6, 0.1, True), (0.6, 0.5, False), (0.1, 0.0, False)):
        said = []
        if root:
            replace(profile, nodes=tuple(replace(node, other_work=had) for node in profile.nodes)).save(path)
        machine.world.barrier()
        monkeypatch.setattr(load, "others_now", lambda cores, seconds, have=have: have)
        found = measured_profile(machine, store.spec, path if root else None, False, False, said.append)
        told = any("has less other work than when profile" in one for one in said)
        assert told == again and (again or found.nodes[0].other_work == had)


def test_one_rank_has_all_cores_and_the_others_rest(machine, measured):
    store, profile = measured
    demand = Demand(ROWS, mode="packed")
    plan, decision = loading.decide(machine, store, faster_alone(profile, 50), "hepti", demand)
    ready = loaded(machine, store, plan, decision)
    assert plan.active == (0,)
    alone = machine.world.size > 1
    assert machine.world.gather_all(ready.engine.threads) == [1 + alone, *[1] * (machine.world.size - 1)]
    values = np.random.default_rng(3).standard_normal((ROWS, store.spec.hidden), np.float32)
    got = ready.engine.run((ROWS,), values if machine.world.rank == 0 else None)
    assert os.sched_getaffinity(0) == set(machine.cores.whole)
    beside = replace(plan, layers=(("rows", "rows"),) * store.spec.layers, heads=(0,) * plan.ranks, columns=(0,) * plan.ranks,
                     rows=tuple(ROWS // plan.ranks + (rank < ROWS % plan.ranks) for rank in range(plan.ranks)))  # fmt: skip
    other = loaded(machine, store, beside)
    assert set(machine.world.gather_all(other.engine.threads)) == {1}
    expected = other.engine.run((ROWS,), values if machine.world.rank == 0 else None)
    machine.world.barrier()
    if got is not None:
        assert np.abs(got - expected).max() < 1e-4


def test_it_is_tried_when_the_ranks_settle(machine, measured):
    store, profile = measured
    demand = Demand(ROWS, mode="packed")
    near = faster_alone(profile, 1.0)
    plan, decision = loading.decide(machine, store, near, "hepti", demand)
    ready = loaded(machine, store, plan, decision)
    settled = settle(machine, store.spec, store.source_hash, ready.segments, near, demand, decision)
    assert len(set(machine.world.gather_all(settled.plan.hash))) == 1 and settled.profile.edges == profile.edges
