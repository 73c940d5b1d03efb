import json
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from clusters import cluster

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.profile import ClusterProfile, first_ranks, from_json, load, matching, mismatch, scaled
from hepti_mpi.commands import main
from hepti_mpi.engine import glance
from hepti_mpi.engine.cores import Cores
from hepti_mpi.errors import ProfileError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

PROFILE = cluster((9, 8, 7), hosts=["a", "b", "c"])
HERE = [("a", 4, 4, 4), ("b", 4, 4, 4), ("c", 4, 4, 4)]
VERSIONS, SHAPE = {"onnxruntime": "1.2.3"}, (56, 101)


def test_a_saved_profile_is_the_same(tmp_path):
    path = tmp_path / "pi.profile.json"
    PROFILE.save(path)
    assert load(path) == PROFILE and load(path).hosts == ("a", "b", "c")
    assert [p.name for p in tmp_path.iterdir()] == ["pi.profile.json"]
    whole = json.loads(path.read_text())
    assert (whole["format"], whole["format_version"], len(whole["profiles"])) == ("hepti-profiles", 1, 1)
    data = whole["profiles"][0]
    assert (data["format"], data["format_version"]) == ("hepti-profile", 4)
    assert {"host", "cores", "threads", "memory_bytes", "gemm_rows", "gemm_seconds_per_weight", "head_start_bytes"} <= set(data["nodes"][0])
    assert data["exchange_seconds"] == PROFILE.exchange_seconds > 0


def test_what_exchanges_cost_is_kept(tmp_path):
    nodes = tuple(replace(node, head_start_bytes=250e3 + rank, glance_seconds_per_weight=1e-10) for rank, node in enumerate(PROFILE.nodes))
    nodes = tuple(replace(node, cached_seconds_per_mac=(1e-10, 2e-10), cached_arrange_seconds=(0.0, 1e-9),
                          beside_seconds=(1e-5, 2e-5), table_seconds=(1e-10, 2e-10)) for node in nodes)  # fmt: skip
    profile = replace(PROFILE, nodes=nodes, exchange_seconds=3e-4, start_seconds=2e-5, start_seconds_per_byte=1e-10)
    profile.save(tmp_path / "p.json")
    assert load(tmp_path / "p.json") == profile
    assert from_json(json.loads(json.dumps(profile.to_json()))) == profile
    older = json.loads(json.dumps(profile.to_json()))
    for node in older["nodes"]:
        node["table_seconds"] = 1e-10  # of one row
    assert from_json(older) == replace(profile, nodes=tuple(replace(node, table_seconds=()) for node in nodes))


def test_slower_ranks_compute_longer_and_are_linked_as_before():
    caches = {"cached_seconds_per_mac": (1e-10, 2e-10), "cached_arrange_seconds": (0.0, 1e-9), "beside_seconds": (1e-5, 2e-5),
              "table_seconds": (1e-10, 2e-10)}  # fmt: skip
    measured = replace(PROFILE, nodes=tuple(replace(node, **caches) for node in PROFILE.nodes))
    for name, seconds in caches.items():
        slower = 10 * seconds if isinstance(seconds, float) else [10 * one for one in seconds]
        assert getattr(scaled(measured, (1, 2, 10)).nodes[2], name) == pytest.approx(slower)
    slower = scaled(PROFILE, (1, 2, 10))
    assert slower.nodes[0] == PROFILE.nodes[0] and slower.hosts == PROFILE.hosts
    for rank, factor in enumerate((1, 2, 10)):
        before, after = PROFILE.nodes[rank], slower.nodes[rank]
        assert after.gemm_seconds_per_weight == pytest.approx([factor * seconds for seconds in before.gemm_seconds_per_weight])
        for name in ("attention_seconds_per_mac", "element_seconds", "segment_seconds", "glance_seconds_per_weight"):
            assert getattr(after, name) == pytest.approx(factor * getattr(before, name))
        for name in ("host", "cores", "threads", "memory_bytes", "gemm_rows", "head_start_bytes"):
            assert getattr(after, name) == getattr(before, name)
    assert replace(slower, nodes=PROFILE.nodes) == PROFILE


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_ranks_are_a_cluster(count, tmp_path):
    part = first_ranks(PROFILE, count)
    assert isinstance(part, ClusterProfile) and part.nodes == PROFILE.nodes[:count]
    for rows, whole in ((part.latency_seconds, PROFILE.latency_seconds), (part.bytes_per_second, PROFILE.bytes_per_second)):
        assert rows == tuple(row[:count] for row in whole[:count])
    part.save(tmp_path / "p.json")
    assert load(tmp_path / "p.json") == part


def test_one_rank_alone(tmp_path):
    cluster((9,)).save(tmp_path / "p.json")
    assert load(tmp_path / "p.json").latency_seconds == ((0.0,),)


@pytest.mark.parametrize("nodes, versions, shape, words", [
    (HERE, VERSIONS, SHAPE, None),
    (HERE, {}, SHAPE, None),
    (HERE, {"emulation": "2,3,4"}, SHAPE, "it was measured with boards that are there, here with emulated boards 2,3,4"),
    ([*HERE[:2], ("c", 4, 4, 2)], {"emulation": "2,3,4"}, SHAPE,
     "it was measured with boards that are there, here with emulated boards 2,3,4"),
    (HERE[:2], VERSIONS, SHAPE, "it has 3 ranks, this job 2"),
    ([HERE[0], HERE[2], HERE[1]], VERSIONS, SHAPE, "its rank 1 is on b, here on c"),
    ([*HERE[:2], ("c", 8, 4, 4)], VERSIONS, SHAPE, "its rank 2 has 4 threads of 4 cores, here 4 of 8"),
    ([*HERE[:2], ("c", 4, 1, 1)], VERSIONS, SHAPE, "its rank 2 has 4 threads of 4 cores, here 1 of 4"),
    ([*HERE[:2], ("c", 4, 4, 2)], VERSIONS, SHAPE, "its rank 2 has 4 threads alone on its host, here 2"),
    (HERE, {"onnxruntime": "1.3"}, SHAPE, "it was measured with onnxruntime 1.2.3, here with onnxruntime 1.3"),
    (HERE, {"blas": "9"}, SHAPE, "it was measured with no blas, here with blas 9"),
    (HERE, VERSIONS, (56, 102), "it was measured at hidden 56 and ffn 101, the model has 56 and 102"),
])  # fmt: skip
def test_mismatch(nodes, versions, shape, words):
    assert mismatch(PROFILE, nodes, versions, shape) == words


def test_the_nearest_entry_is_the_one_that_differs_in_least():
    """Not the last: of emulated boards where these are there, or of weights in another format where the model is another anyhow."""
    emulated, less = (replace(PROFILE, versions={**PROFILE.versions, **more}) for more in ({"emulation": "2,3,4"}, {"formats": "q8"}))
    now = {**VERSIONS, "formats": "q8"}
    assert matching([PROFILE, emulated], HERE, now, SHAPE)[1].endswith("it was measured with weights in float32, here with weights in q8")
    assert matching([PROFILE, less], HERE, VERSIONS, (56, 102))[1].endswith("the model has 56 and 102")
    assert matching([PROFILE, less], HERE, now, SHAPE) == (less, "")


def edited(change=None, **fields):
    data = json.loads(json.dumps(PROFILE.to_json())) | fields
    if change:
        change(data)
    return json.dumps(data)


def node(**fields):
    return lambda data: data["nodes"][1].update(fields)


DAMAGED = [
    ("", "not JSON"),
    ("[" * 100_000, "not JSON"),
    (b"\xff\xfe", "not JSON"),
    ("[]", "not a profile"),
    ('{"format": "hepti-plan"}', "not a profile"),
    (edited(format_version=1), "format version 1, this program reads 4"),
    (edited(format_version="2"), "format version '2'"), (edited(format_version=None), "has no format version, this program reads 4"),
    (edited(lambda data: data.pop("format_version")), "has no format version, this program reads 4"),
    ('{"format": "hepti-profiles", "format_version": 1, "profiles": []}', "profile .* has no entries"),
    ('{"format": "hepti-profiles", "profiles": []}', "has no format version, this program reads 1"),
    (edited(nodes=[]), "damaged"),
    (edited(nodes=7), "damaged"),
    (edited(node(memory_bytes=0)), "damaged"),
    (edited(node(memory_bytes=-1)), "damaged"),
    (edited(node(memory_bytes="much")), "damaged"),
    (edited(node(memory_bytes=math.inf)), "damaged"),
    (edited(node(cores=True)), "damaged"),
    (edited(node(element_seconds=0)), "damaged"),
    (edited(node(segment_seconds=math.nan)), "damaged"),
    (edited(node(cached_seconds_per_mac=[1e-9])), "what caches take is not of float32, float16"),
    (edited(node(cached_seconds_per_mac=[1e-9], cached_arrange_seconds=[0.0])), "what caches take is not of float32, float16"),
    (edited(node(cached_seconds_per_mac=[1e-9, 0], cached_arrange_seconds=[0, 0])), "between"),
    (edited(node(beside_seconds=[1e-5])), "what layers of texts or words take is not of steps of 1, 8 rows"),
    (edited(node(beside_seconds=[-1e-5, 0])), "between"),
    (edited(node(table_seconds=[-1e-10, 1e-10])), "between"), (edited(node(table_seconds=[1e-10])), "not of steps of 1, 8 rows"),
    (edited(node(gemm_rows=[1, 8, 32])), "curve"),
    (edited(node(gemm_rows=[1, 32, 8, 128])), "curve"),
    (edited(node(gemm_rows=[0, 8, 32, 128])), "between"),
    (edited(node(gemm_rows=[1, 8, 8, 128])), "curve"),
    (edited(node(gemm_rows=[], gemm_seconds_per_weight=[])), "curve"),
    (edited(node(gemm_rows=["a", 8, 32, 128])), "damaged"),
    (edited(lambda data: data["nodes"][1].pop("threads")), "damaged"),
    (edited(lambda data: data["nodes"].pop()), "latency_seconds is not 2 x 2"),
    (edited(lambda data: data["latency_seconds"][1].pop()), "latency_seconds is not 3 x 3"),
    (edited(lambda data: data["bytes_per_second"][0].__setitem__(2, 0)), "damaged"),
    (edited(bytes_per_second=None), "damaged"),
    (edited(node(head_start_bytes=-1)), "damaged"),
    (edited(node(head_start_bytes="some")), "damaged"),
    (edited(lambda data: data["nodes"][1].pop("head_start_bytes")), "damaged"),
    (edited(exchange_seconds=-1e-9), "damaged"),
    (edited(exchange_seconds=None), "damaged"),
    (edited(start_seconds=math.nan), "damaged"),
    (edited(lambda data: data.pop("exchange_seconds")), "damaged"),
    (edited(lambda data: data["bytes_per_second"][0].__setitem__(2, math.inf)), "damaged"),
    (edited(shape=[56]), "damaged"),
    (edited(shape="ab"), "damaged"),
    (edited(versions=7), "damaged"),
]


@pytest.mark.parametrize("text, words", DAMAGED)
def test_damaged_profiles(tmp_path, text, words):
    path = tmp_path / "p.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProfileError, match=words) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "python -m hepti_mpi profile" in str(error.value)


def test_no_profile_and_a_folder(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ProfileError, match="cannot be read"):
            load(path)


def test_a_profile_that_cannot_be_saved(tmp_path):
    with pytest.raises(ProfileError, match="no/p.json cannot be written"):
        PROFILE.save(tmp_path / "no" / "p.json")


def test_a_file_keeps_what_was_measured_of_each(tmp_path):
    """Ranks, threads, shape and emulated boards each have an entry; measured again, it takes the place of the one before."""
    path = tmp_path / "pi.profile.json"
    four, two = cluster((4, 3, 2, 1)), cluster((4, 3))
    threads = replace(two, nodes=tuple(replace(node, threads=node.threads + 1) for node in two.nodes))
    shape, emulated = replace(two, shape=(1, 2)), replace(two, versions={**two.versions, profiles.EMULATION: "1,2"})
    for one in (four, two, threads, shape, emulated):
        one.save(path)
    assert profiles.load_all(path) == [four, two, threads, shape, emulated] and profiles.load(path) == emulated
    again = replace(two, exchange_seconds=0.5)
    again.save(path)
    assert profiles.load_all(path) == [four, threads, shape, emulated, again]


def test_a_file_of_one_profile_is_still_read(tmp_path):
    path, one, two = tmp_path / "old.json", cluster((4, 3)), cluster((4,))
    path.write_text(json.dumps(one.to_json()))
    assert profiles.load_all(path) == [one]
    two.save(path)
    assert profiles.load_all(path) == [one, two]
    data = json.loads(path.read_text())
    data["profiles"][0]["format_version"] = 3  # of a program before this
    path.write_text(json.dumps(data))
    assert profiles.load_all(path) == [two]


def test_each_entry_of_a_file_keeps_its_date(tmp_path):
    """The file's own date, which is that of its newest entry, was told of all."""
    path = tmp_path / "p.json"
    replace(cluster((4,)), date="2026-01-01 10:00 UTC").save(path)
    replace(cluster((4, 3)), date="2026-01-02 10:00 UTC").save(path)
    assert [one.date[:10] for one in profiles.load_all(path)] == ["2026-01-01", "2026-01-02"]
    assert cluster((4,)) == profiles.load_all(path)[0], "when it was measured is no part of what was"
    old = {key: value for key, value in cluster((4,)).to_json().items() if key != "date"}
    assert profiles.from_json(old).date == ""


def test_jobs_that_measure_at_once_lose_nothing(tmp_path):
    path = tmp_path / "p.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda ranks: cluster(tuple(range(1, ranks + 1))).save(path), range(1, 13)))
    assert sorted(len(one.nodes) for one in profiles.load_all(path)) == list(range(1, 13))


def test_a_profile_that_was_not_measured_again_says_of_when_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    words = ["profile", "--weights", "tiny.h5", "--threads", "1", "--output", "p.json", "--emulate", "pi4"]
    first, second, third = (CliRunner().invoke(main.main, [*words, *more]) for more in ([], [], ["--fresh"]))
    assert first.output.splitlines()[-1].startswith("p.json (") and third.output.splitlines()[-1].startswith("p.json (")
    kept = json.loads(Path("p.json").read_text())
    assert kept["profiles"][0]["date"].endswith(" UTC")
    os.utime("p.json", (0, 0))  # the file's own date is not the entry's
    assert re.search(r"\np\.json, as it was measured on 20\d\d-.* UTC, since it still matches; --fresh measures again\n$", second.output)


def test_a_rank_whose_threads_find_no_core_is_not_taken_for_a_faster_one(monkeypatch):
    """By the time that its cores worked it was up to 1.9 times as fast as its profile, which was measured again on an idle machine."""
    model = random_model("minilm").spec
    weights = glance.chained(model)[1]
    here = cluster((1.0, 1.0))
    node = replace(here.nodes[0], threads=1, glance_seconds_per_weight=0.01 / weights)
    nodes = [replace(node, alone=replace(node, threads=2))] * 4
    asleep = SimpleNamespace(run=lambda outputs, rows: time.sleep(0.01))  # takes its time, and no core's
    monkeypatch.setattr(glance, "products", lambda *args: asleep)
    place = Cores(0, [node.host] * 4, [0, 1], [0, 1], 1, 2)
    monkeypatch.setattr(Cores, "use", lambda self, alone: self.alone_threads if alone else self.threads)
    assert 0.1 < glance.sooner(place, model, nodes) < 1.1
