"""Stages of texts: which ranks have which layers, what that takes, and when it is chosen."""

from dataclasses import replace

import pytest
from clusters import cluster
from test_decoding import SPEC, TEXT

from hepti_mpi.errors import CapacityError, PlanError
from hepti_mpi.planning import decoding, staging, texts, writing
from hepti_mpi.reporting.generation import stages_lines, ways_document, ways_lines, writers_lines

HASH = "0" * 64


def staged(profile, name="stages", at_once=1, **changes):
    return staging.staged(name, SPEC, HASH, profile, replace(TEXT, **changes), at_once)


def decide(profile, name="hepti", at_once=1, **changes):
    return texts.decide(name, SPEC, HASH, profile, replace(TEXT, **changes), at_once)


def alone(**changes):
    """What one rank with room for all takes."""
    return decoding.decide("hepti", SPEC, HASH, cluster([20.0]), replace(TEXT, **changes)).chosen


@pytest.mark.parametrize("speeds", [(20.0, 20.0), (5.0, 20.0, 10.0), (20.0,) * 5])
def test_stages_are_each_layer_once_and_take_what_they_take_alone(speeds):
    found = staged(cluster(list(speeds), latency=0.001))
    assert sum(found.counts) == SPEC.layers and len(set(found.ranks)) == len(found.ranks) >= 2
    (team,) = found.placement.teams
    assert [stage.plan.first for stage in team.stages] == [sum(found.counts[:place]) for place in range(len(found.counts))]
    one = alone()
    if len(set(speeds)) == 1:  # no sooner and no later than one of them alone, but for the way
        assert found.seconds - found.hop_seconds == pytest.approx(one.price.seconds, rel=0.02)
        assert sum(found.memory) == pytest.approx(one.memory[0], rel=0.02)
    assert found.hop_seconds == pytest.approx((len(found.ranks) + (found.ranks[0] != 0) - (found.ranks[-1] == 0)) * 0.001, rel=0.2)
    assert "words" in stages_lines(found, ["a", "b", "c", "d", "e"][: len(speeds)], 80)


def test_the_fastest_have_what_they_hold_for_one_text_and_all_the_same_time_for_many():
    profile = cluster([20.0, 20.0, 20.0], latency=1e-4, memory=0.7 * alone(kept=1000).memory[0])
    first = staged(profile)
    assert max(first.counts) > 20 and max(first.memory) <= profile.nodes[0].memory_bytes
    one, groups = staging.grouped(SPEC, profile, TEXT, first, 1)
    assert one == pytest.approx(first.seconds) and groups == 1
    even = staged(cluster([20.0] * 3, latency=1e-4), at_once=64)
    assert max(even.stage_seconds) < 1.2 * min(even.stage_seconds)


def test_what_no_rank_holds_is_in_stages_where_messages_are_slow():
    memory = 0.7 * alone().memory[0]
    near, far = (decide(cluster([20.0, 20.0, 20.0], latency=latency, memory=memory)) for latency in (1e-5, 0.02))
    assert not near.in_stages and near.staged is not None and far.in_stages and far.decision is not None
    assert far.seconds < 0.2 * far.decision.chosen.price.seconds and max(far.staged.memory) <= memory
    roomy = decide(cluster([20.0, 20.0, 20.0], latency=0.02))
    assert not roomy.in_stages and len(roomy.placement.together.active) == 1, "one that holds all is sooner"


def test_ranks_of_one_host_are_no_stages_unless_they_must():
    profile = cluster([20.0, 20.0, 20.0], hosts=["a", "a", "b"], latency=1e-4)
    nodes = tuple(replace(node, alone=replace(node)) for node in profile.nodes)
    found = staged(replace(profile, nodes=nodes))
    assert {profile.hosts[rank] for rank in found.ranks} == {"a", "b"} and len(found.ranks) == 2


def test_layers_by_memory():
    memory = [2 << 30, 1 << 30, 1 << 30]
    found = staged(cluster([20.0, 20.0, 20.0], memory=memory), "layers")
    assert found.counts == (15, 8, 7) and found.ranks == (0, 1, 2)
    assert decide(cluster([20.0, 20.0, 20.0], memory=memory), "layers").in_stages


@pytest.mark.parametrize("name", staging.NAMES)
def test_what_does_not_fit_is_refused(name):
    with pytest.raises(CapacityError, match="no stages fit: .* --slots and --context"):
        staged(cluster([20.0, 20.0], memory=0.4 * alone().memory[0]), name)
    with pytest.raises(PlanError, match="stages need two ranks"):
        staged(cluster([20.0]), name)
    with pytest.raises(PlanError, match="leave out --layout and --shares"):
        staged(cluster([20.0, 20.0]), name, shares=(1.0, 1.0))


def test_what_is_in_memory_while_files_of_weights_are_made_is_told():
    told = r"no stages fit: .*, and of all weights \d+ bytes are in memory while a file of --weights-cache is made or opened; "
    way = "give more memory or ranks, run without --weights-cache, if each host has the store, or make those less with"
    with pytest.raises(CapacityError, match=told + way):
        staged(cluster([20.0, 20.0]), mode="mapped", prepacked=True, limits=(100_000_000,) * 2)
    assert staged(cluster([20.0, 20.0]), mode="mapped", limits=(200_000_000,) * 2)


def test_that_mapped_weights_are_not_packed_is_told():
    profile = cluster([20.0, 20.0])
    for name in ("tensor", "stages"):
        told = [note for note in ways_lines(decide(profile, name, mode="mapped"), 1.5).splitlines() if "not packed" in note]
        assert told == ["float32 weights stay in their file and are not packed: products of few rows may take longer than predicted"]
        assert "not packed" not in ways_lines(decide(profile, name, mode="mapped", prepacked=True), 1.5)
        assert "not packed" not in ways_lines(decide(profile, name), 1.5)


def test_teams_may_be_in_stages():
    """Of boards that cannot hold the model alone, where messages are slow; each board that can is one too."""
    memory = alone(kept=0).memory[0] + 1025 * decoding.cache_bytes([layer.attention for layer in SPEC.each()], SPEC.kv_heads)
    profile = cluster([20.0, 9.0, 9.0], memory=[memory, 0.7 * memory, 0.7 * memory], latency=0.02)
    request = replace(TEXT, kept=4 * 256)
    one = texts.decide("hepti", SPEC, HASH, profile, request).placement
    found = writing.arranged(SPEC, HASH, profile, request, one, (4, 64))
    assert [len(writer.team.stages) for writer in found.every] == [1, 2] and set(found.every[1].team.members) == {1, 2}
    assert "stages of" in writers_lines(found, ["a", "b", "c"])


def test_the_ways_are_shown_soonest_first_and_what_was_chosen():
    memory = 0.7 * alone().memory[0]
    chosen = decide(cluster([20.0, 20.0, 20.0], latency=0.02, memory=memory))
    lines = ways_lines(chosen, 1.5, 100).splitlines()
    assert lines[1].startswith("stages of ") and "chosen" in lines[1]
    assert any("heads/columns" in line and " x" in line for line in lines[2:])
    told = ways_document(chosen, 1.5)
    assert all(len(way["members"]) == way["ranks"] for way in told["ways"])
    names = [way["way"] for way in told["ways"]]
    assert len({line.split("  ")[0] for line in lines[1:]}) == len(told["ways"])  # no two are named alike
    assert all(f" on rank{'s' * (way['ranks'] > 1)} {way['members'][0]}" in line for way, line in zip(told["ways"], lines[1:])
               if names.count(way["way"]) > 1)  # fmt: skip
    assert [way["chosen"] for way in told["ways"]] == [True] + [False] * (len(told["ways"]) - 1)
    assert told["token_seconds"] == pytest.approx(chosen.seconds, rel=1e-4) and len(told["plan"]["teams"][0]) == len(chosen.staged.ranks)
    forced = ways_document(decide(cluster([20.0, 20.0]), "layers"), None)
    assert [way["way"] for way in forced["ways"]] == ["stages of 15 + 15 layers"]
