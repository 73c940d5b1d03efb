"""What the machines can do: measured speeds, links and memory, and the file they are kept in. Knows no model and no plan.

Speed is a curve, not a number: a matrix product of few rows is bound by reading the weights, one of many rows by arithmetic.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hepti_mpi.documents import check_version, read_document, write_document
from hepti_mpi.errors import ProfileError
from hepti_mpi.wording import counted

FORMAT, FORMAT_VERSION = "hepti-profile", 4
FILE_FORMAT, FILE_VERSION = "hepti-profiles", 1  # of the file, which keeps several
MOST_KEPT = 64  # entries of a file; the oldest go
EMULATION = "emulation"  # among the versions: the boards that the ranks pretend to be, where they do
FORMATS = "formats"  # among the versions: those of the weights that products were measured with, where not all are float32
PLAIN: Mapping[str, float] = {"f32": 1.0}
CACHES = ("float32", "float16")  # numbers that keys and values of texts may be kept as
STEP_ROWS = (1, 8)  # rows, each of a text, of the steps whose layers are timed whole
GLANCE = 2  # which of the curve's numbers of rows a later job looks at
BOARDS = "boards"  # among the versions: their names, where they are described and not measured
AGAIN = "measure it with: mpirun -hostfile FILE python -m hepti_mpi profile"


@dataclass(frozen=True)
class NodeProfile:
    """One rank, measured while the other ranks of its host were measured too. Times are those that its cores worked: where a host
    has fewer cores than its ranks have threads, waiting for a core is not in them.

    `gemm_rows`, `gemm_seconds_per_weight`: the curve: seconds to multiply that many rows by one weight of a matrix.
    `attention_seconds_per_mac`: seconds per multiply-add of softmax(Q K^T) V.
    `element_seconds`: seconds per element of a residual sum with LayerNorm.
    `activation_seconds`: seconds per element of an activation with its bias.
    `arrange_seconds`: seconds per element of its input that attention takes to lay requests out and back, and to begin.
    `cached_seconds_per_mac`, `cached_arrange_seconds`: the same two of a row of a text that attends to those in a cache, of each of CACHES;
    () where nobody timed them: as of any attention.
    `beside_seconds`: seconds of a layer beside its products and its attention, in steps of texts, of each of STEP_ROWS, whatever the rank's
    share; () where nobody timed them: as its elements and activations.
    `table_seconds`: seconds for each byte of a table that is larger than caches, such as that of words, to be read and multiplied by
    each of STEP_ROWS; () where nobody timed it: as layers' weights.
    `cast_seconds`: seconds per element to make float16 of float32.
    `glance_seconds_per_weight`: seconds of one number of rows of the curve in a chain of products alone, which a later job times again to
    see whether the rank had other work; 0 where nobody did.
    `segment_seconds`: fixed cost of one session run.
    `memory_bytes`: what it can use for weights and activations.
    `other_work`: the part of its host's cores that others had while it was measured.
    `head_start_bytes`: what passes its idle link at once, before the link's rate holds.
    `alone`: the same rank when no other rank of its host computes: it has all cores, and all memory; None where it has them anyway.
    """

    host: str
    cores: int
    threads: int
    memory_bytes: int
    gemm_rows: tuple[int, ...]
    gemm_seconds_per_weight: tuple[float, ...]
    attention_seconds_per_mac: float
    element_seconds: float
    segment_seconds: float
    head_start_bytes: float = 0.0
    cast_seconds: float = 1e-10
    activation_seconds: float = 2e-9
    arrange_seconds: float = 0.0
    glance_seconds_per_weight: float = 0.0
    cached_seconds_per_mac: tuple[float, ...] = ()
    cached_arrange_seconds: tuple[float, ...] = ()
    beside_seconds: tuple[float, ...] = ()
    table_seconds: tuple[float, ...] = ()
    other_work: float = 0.0
    alone: "NodeProfile | None" = None

    def beside(self, rows: int) -> float | None:
        """Return `beside_seconds` of a step of so many rows, each of a text."""
        if not self.beside_seconds:
            return None
        (few, many), (least, most) = STEP_ROWS, self.beside_seconds
        return least + min(max((rows - few) / (many - few), 0.0), 1.0) * (most - least)

    def attention(self, cache: str | None) -> tuple[float, float]:
        """Return the seconds per multiply-add of an attention and per element of its input; `cache`: the numbers of the cache to which rows
        of texts attend, one each, or None."""
        if cache is None or not self.cached_seconds_per_mac:
            return self.attention_seconds_per_mac, self.arrange_seconds
        place = CACHES.index(cache)
        return self.cached_seconds_per_mac[place], self.cached_arrange_seconds[place]


@dataclass(frozen=True)
class Edges:
    """What rank 0 takes for what lies around the layers, in seconds: for each element of the embedding, for each multiply-add of a
    product there or in the head, for each request and for each batch."""

    element: float = 0.0
    mac: float = 0.0
    request: float = 0.0
    batch: float = 0.0


@dataclass(frozen=True)
class ClusterProfile:
    """All ranks of a job. `latency_seconds[i][j]`, `bytes_per_second[i][j]`: ping-pong between ranks i and j, 0 on the diagonal.

    `exchange_seconds`: what our own exchange of next to nothing between all ranks takes, with the way in which a rank waits.
    `start_seconds`, `start_seconds_per_byte`: what a rank is busy with when it starts an exchange: calls, and copies into the system.
    `versions`: of the libraries that decide speed, and formats of weights; `shape`: (hidden, ffn) of the model whose shapes were measured.
    `date`: when that was, as it is recorded; empty where nobody noted it.
    """

    nodes: tuple[NodeProfile, ...]
    latency_seconds: tuple[tuple[float, ...], ...]
    bytes_per_second: tuple[tuple[float, ...], ...]
    versions: dict[str, str]
    shape: tuple[int, int]
    exchange_seconds: float
    start_seconds: float = 0.0
    start_seconds_per_byte: float = 0.0
    edges: Edges = Edges()
    date: str = field(default="", compare=False)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(node.host for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}

    @property
    def emulated(self) -> str:
        """The boards that the ranks pretend to be; empty where they do not."""
        return self.versions.get(EMULATION, "")

    @property
    def cores(self) -> dict[str, int]:
        """The cores of each host, by its name; none where ranks pretend to be boards, which share nothing."""
        return {} if self.emulated else {node.host: node.cores for node in self.nodes}

    @property
    def measured(self) -> tuple[Any, ...]:
        """What was measured: a file keeps one entry for each of these."""
        threads = tuple((node.host, node.cores, node.threads, (node.alone or node).threads) for node in self.nodes)
        return self.shape, threads, self.emulated, self.versions.get(FORMATS)

    def save(self, path: Path) -> None:
        """Put the profile into the file at `path`, beside what was measured of other ranks, threads, shapes and boards. Raises
        ProfileError."""
        with _alone(path.parent):
            try:
                kept = [old for old in load_all(path) if old.measured != self.measured] if path.exists() else []
            except ProfileError:  # of no use to anybody
                kept = []
            entries = [profile.to_json() for profile in (*kept, self)][-MOST_KEPT:]
            write_document(path, {"format": FILE_FORMAT, "format_version": FILE_VERSION, "profiles": entries}, ProfileError)


def joined(
    every: Sequence[Sequence[Any]], versions: dict[str, str], shape: tuple[int, int], exchange: tuple[float, float, float]
) -> ClusterProfile:  # fmt: skip
    """Return the profile of what each rank told: who it is, its speeds, those with all cores of its host or None, its latencies and bytes
    per second to all ranks, and edges, of which the first rank's count. `exchange`: seconds as in a ClusterProfile."""
    lone: dict[str, Any] = {}
    memory: dict[str, int] = {}
    for who, _, alone, *_ in every:
        memory[who["host"]] = memory.get(who["host"], 0) + who["memory_bytes"]
        if alone is not None:
            lone.setdefault(who["host"], alone)
    nodes = []
    for who, own, *_ in every:
        one = _told(who | own)
        if one.host in lone:
            whole = {"threads": one.cores, "memory_bytes": memory[one.host]}
            one = replace(one, alone=_told(who | whole | lone[one.host]))
        nodes.append(one)
    latency, bandwidth = (tuple(tuple(told[place]) for told in every) for place in (3, 4))
    return ClusterProfile(tuple(nodes), latency, bandwidth, versions, shape, *exchange, Edges(**every[0][5]))


def _told(facts: dict[str, Any]) -> NodeProfile:
    named: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    return NodeProfile(**named)


def in_formats(formats: Mapping[str, float]) -> dict[str, str]:
    """Return what the versions say of products with weights, of which such a part is in each of these formats."""
    said = ", ".join(name if part > 0.99 else f"{part:.0%} {name}" for name, part in formats.items())
    return {} if said == "f32" else {FORMATS: said}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other job write a file in `folder` meanwhile, where the file system knows locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # writing says what is the matter
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def scaled(profile: ClusterProfile, factors: Sequence[float], alone: Sequence[float] | None = None) -> ClusterProfile:
    """Return the profile of the same ranks when each takes `factors` times as long to compute; `alone`: with all cores of its host, where
    that is another factor."""

    def slower(node: NodeProfile, by: float) -> NodeProfile:
        return replace(
            node, gemm_seconds_per_weight=tuple(by * seconds for seconds in node.gemm_seconds_per_weight),
            attention_seconds_per_mac=by * node.attention_seconds_per_mac, element_seconds=by * node.element_seconds,
            cast_seconds=by * node.cast_seconds, segment_seconds=by * node.segment_seconds,
            activation_seconds=by * node.activation_seconds, arrange_seconds=by * node.arrange_seconds,
            glance_seconds_per_weight=by * node.glance_seconds_per_weight, alone=node.alone,
            cached_seconds_per_mac=tuple(by * seconds for seconds in node.cached_seconds_per_mac),
            cached_arrange_seconds=tuple(by * seconds for seconds in node.cached_arrange_seconds),
            beside_seconds=tuple(by * seconds for seconds in node.beside_seconds),
            table_seconds=tuple(by * seconds for seconds in node.table_seconds),
        )  # fmt: skip

    every = zip(profile.nodes, factors, factors if alone is None else alone, strict=True)
    nodes = (replace(slower(node, by), alone=node.alone and slower(node.alone, whole)) for node, by, whole in every)
    return replace(profile, nodes=tuple(nodes))


def soonest(profiles: Sequence[ClusterProfile]) -> ClusterProfile:
    """Return the first of several profiles that `scaled` has made of one, with each rank as fast as it is in any of them: a rank that was
    disturbed while it was measured is faster than that."""

    def least(nodes: Sequence[NodeProfile]) -> NodeProfile:
        return min(nodes, key=lambda node: node.gemm_seconds_per_weight)

    every = [(least(nodes), [node.alone for node in nodes if node.alone]) for nodes in zip(*(profile.nodes for profile in profiles))]
    return replace(profiles[0], nodes=tuple(replace(node, alone=least(alone) if alone else None) for node, alone in every))


def of_hosts(profile: ClusterProfile, hosts: Sequence[str]) -> ClusterProfile | None:
    """Return the profile of the ranks that are on `hosts`, None when one of those was not measured."""
    if not set(hosts) <= set(profile.hosts):
        return None
    ranks = [rank for rank, host in enumerate(profile.hosts) if host in hosts]
    return of_ranks(profile, ranks)


def first_ranks(profile: ClusterProfile, count: int) -> ClusterProfile:
    """Return the profile of a cluster of the first `count` ranks."""
    return of_ranks(profile, range(count))


def of_ranks(profile: ClusterProfile, ranks: Sequence[int]) -> ClusterProfile:
    """Return the profile of some ranks, which are counted from 0 then, in their order."""
    links = (profile.latency_seconds, profile.bytes_per_second)
    latency, bandwidth = (tuple(tuple(rows[one][other] for other in ranks) for one in ranks) for rows in links)
    nodes, versions = tuple(profile.nodes[rank] for rank in ranks), dict(profile.versions)
    boards = str(versions.get(EMULATION)).split(",")
    if len(boards) == len(profile.nodes) and EMULATION in versions:  # a board per rank
        versions[EMULATION] = ",".join(boards[rank] for rank in ranks)
    return replace(profile, nodes=nodes, latency_seconds=latency, bytes_per_second=bandwidth, versions=versions)


def mismatch(
    profile: ClusterProfile, nodes: Sequence[tuple[str, int, int, int]], versions: dict[str, str], shape: tuple[int, int]
) -> str | None:  # fmt: skip
    """Say why a saved profile does not describe these (host, cores, threads, threads where no other rank of the host computes),
    versions and shape, or None when it does."""
    if len(profile.nodes) != len(nodes):
        return f"it has {counted(len(profile.nodes), 'ranks')}, this job {len(nodes)}"
    for rank, (node, (host, _, _, _)) in enumerate(zip(profile.nodes, nodes)):
        if node.host != host:
            return f"its rank {rank} is on {node.host}, here on {host}"
    then, now = (_said(EMULATION, of.get(EMULATION)) for of in (profile.versions, versions))
    if then != now:  # boards that were pretended are not those that are there, and have threads of their own
        return f"it was measured with {then}, here with {now}"
    for rank, (node, (_, cores, threads, alone)) in enumerate(zip(profile.nodes, nodes)):
        if (node.cores, node.threads) != (cores, threads):
            return f"its rank {rank} has {counted(node.threads, 'threads')} of {node.cores} cores, here {threads} of {cores}"
        if (node.alone or node).threads != alone:
            return f"its rank {rank} has {counted((node.alone or node).threads, 'threads')} alone on its host, here {alone}"
    for name in dict.fromkeys((*versions, FORMATS)):
        if profile.versions.get(name) != versions.get(name):
            then, now = (_said(name, of.get(name)) for of in (profile.versions, versions))
            return f"it was measured with {then}, here with {now}"
    if tuple(profile.shape) != shape:
        return f"it was measured at hidden {profile.shape[0]} and ffn {profile.shape[1]}, the model has {shape[0]} and {shape[1]}"
    return None


def _said(name: str, version: str | None) -> str:
    """Return what a version says, in words."""
    if name == FORMATS:
        return f"weights in {version or 'float32'}"
    if name == EMULATION:
        return f"emulated boards {version}" if version else "boards that are there"
    return f"{name} {version}" if version else f"no {name}"


def load_all(path: Path) -> list[ClusterProfile]:
    """Read the profiles of a file, the last measured last. Raises ProfileError when it is missing, damaged, or of another format."""
    data = read_document(path, (FORMAT, FILE_FORMAT), None, ProfileError, AGAIN)
    if data["format"] == FILE_FORMAT:
        check_version(path, data.get("format_version"), FILE_VERSION, ProfileError, AGAIN)
    try:
        entries = [data] if data["format"] == FORMAT else list(data["profiles"])
        versions = [entry.get("format_version") for entry in entries]
        found = [from_json(entry) for entry, version in zip(entries, versions) if version == FORMAT_VERSION]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ProfileError(f"profile {path} is damaged: {error!r}; {AGAIN}") from None
    if not versions:
        raise ProfileError(f"profile {path} has no entries; {AGAIN}")
    if not found:
        check_version(path, versions[-1], FORMAT_VERSION, ProfileError, AGAIN)
    return found


def load(path: Path) -> ClusterProfile:
    """Read the profile that was measured last. Raises ProfileError as load_all."""
    return load_all(path)[-1]


def matching(
    found: Sequence[ClusterProfile], nodes: Sequence[tuple[str, int, int, int]], versions: dict[str, str], shape: tuple[int, int]
) -> tuple[ClusterProfile | None, str]:  # fmt: skip
    """Return the profile that describes these nodes, versions and shape (see mismatch); else None and why none of them does."""
    reasons = []
    for profile in reversed(found):
        reason = mismatch(profile, nodes, versions, shape)
        if reason is None:
            return profile, ""
        boards, formats = (profile.versions.get(name) != versions.get(name) for name in (EMULATION, FORMATS))
        differs = len(profile.nodes) != len(nodes), boards, profile.shape != shape, formats  # most of all first
        reasons.append((differs, reason))
    _, nearest = min(reasons, key=lambda item: item[0])
    return None, nearest if len(reasons) == 1 else f"of its {len(reasons)} entries the nearest is of another job: {nearest}"


def from_json(data: dict[str, Any]) -> ClusterProfile:
    """Rebuild a profile. Raises KeyError, TypeError or ValueError when something is missing or not a positive number."""
    nodes = [_node(item) for item in data["nodes"]]
    links = {}
    if not nodes:
        raise ValueError("there are no nodes")
    for key, least, most in (("latency_seconds", 1e-9, 1e6), ("bytes_per_second", 1.0, 1e15)):
        links[key] = tuple(tuple(_between(v, least, most) if i != j else 0.0 for j, v in enumerate(row)) for i, row in enumerate(data[key]))
        if len(links[key]) != len(nodes) or any(len(row) != len(nodes) for row in links[key]):
            raise ValueError(f"{key} is not {len(nodes)} x {len(nodes)}")
    hidden, ffn = (int(_between(v, 1, 1 << 24)) for v in data["shape"])
    exchange, start, per_byte = (_between(data[key], 0, 1e6) for key in ("exchange_seconds", "start_seconds", "start_seconds_per_byte"))
    edges = Edges(**{key: _between(data["edges"][key], 0, 1e6) for key in ("element", "mac", "request", "batch")})
    return ClusterProfile(
        tuple(nodes), versions=dict(data["versions"]), shape=(hidden, ffn), exchange_seconds=exchange, start_seconds=start,
        start_seconds_per_byte=per_byte, edges=edges, date=str(data.get("date", "")), **links,
    )  # fmt: skip


def _node(item: dict[str, Any]) -> NodeProfile:
    curve = tuple(_seconds(v) for v in item["gemm_seconds_per_weight"])
    rows = tuple(int(_between(v, 1, 1 << 30)) for v in item["gemm_rows"])
    if not rows or len(rows) != len(curve) or list(rows) != sorted(set(rows)) or rows[0] < 1:
        raise ValueError("gemm_rows and gemm_seconds_per_weight do not form a curve")
    cores, threads, memory = (int(_between(item[key], 1, 1 << 62)) for key in ("cores", "threads", "memory_bytes"))
    attention, element, segment, cast, activation = (
        _seconds(item[key])
        for key in ("attention_seconds_per_mac", "element_seconds", "segment_seconds", "cast_seconds", "activation_seconds")
    )
    arrange, head_start = _between(item["arrange_seconds"], 0, 1e6), _between(item["head_start_bytes"], 0, 1 << 40)
    glance = _between(item.get("glance_seconds_per_weight", 0.0), 0, 1e6)
    cached = tuple(_seconds(v) for v in item.get("cached_seconds_per_mac", ()))
    begins = tuple(_between(v, 0, 1e6) for v in item.get("cached_arrange_seconds", ()))
    if len(cached) != len(begins) or len(cached) not in (0, len(CACHES)):
        raise ValueError(f"what caches take is not of {', '.join(CACHES)}")
    beside = tuple(_between(v, 0, 1e6) for v in item.get("beside_seconds", ()))
    table = item.get("table_seconds", ())
    table = tuple(_between(v, 0, 1e6) for v in table) if isinstance(table, (list, tuple)) else ()  # it was of one row, for a day
    if not {len(beside), len(table)} <= {0, len(STEP_ROWS)}:
        raise ValueError(f"what layers of texts or words take is not of steps of {', '.join(map(str, STEP_ROWS))} rows")
    speeds = (curve, attention, element, segment, head_start, cast, activation, arrange, glance, cached, begins, beside, table)
    alone = None if item["alone"] is None else _node(item["alone"])
    if alone is not None and (alone.alone is not None or len(alone.gemm_rows) != len(rows)):
        raise ValueError("what a rank can do alone is not of the same rows")
    others = _between(item.get("other_work", 0.0), 0, 1)
    return NodeProfile(str(item["host"]), cores, threads, memory, rows, *speeds, others, alone)


def _seconds(value: Any) -> float:
    return _between(value, 1e-18, 1e6)


def _between(value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"a value is not a number between {least:g} and {most:g}")
    return float(value)
