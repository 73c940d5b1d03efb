"""This rank's place among the others: MPI, cores and threads, and what was measured of all of them.

Knows ranks, hosts and profiles; of a model only what measuring is told of, and no plan. Every stage ends with all ranks agreeing that it
worked, so that an error on one rank ends all of them, and is told once.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from hepti_mpi import __version__
from hepti_mpi.cluster import load
from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.emulation import Emulation
from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.comm.advice import with_ranks
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.engine import pool
from hepti_mpi.engine.cores import Cores, may_use, widen_affinity
from hepti_mpi.errors import HeptiError, HostError, PlanError, ProfileError, is_misnamed, reason_of, refused_file
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.wording import counted

BUSY = 0.2  # part of a host's cores that others may have while it is measured
LOOK_SECONDS = 0.2  # for which a host is looked at that had other work
SOONER = 1.4  # times as fast as in its profile a rank may be: more than its own clock rates do
Say = Callable[[str], None]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Machine:
    """This rank's place: the `cores` of its host and how many it computes with, how it exchanges, and the board it pretends to be."""

    world: Comm
    cores: Cores
    exchanges: Exchanges
    emulation: Emulation
    boards: list[str | None]  # that all ranks pretended to be when the job began

    def tell_threads_apart(self) -> None:
        """Let sessions have threads of their own, so that some compute by one beside others; before the first one is made."""
        pool.configure(self.cores.threads, one_pool=self.cores.alone_threads == 1)


@contextmanager
def together(world: Comm) -> Iterator[None]:
    """Run a stage on every rank and end it everywhere when it failed anywhere. The stage itself must not exchange data."""
    error: HeptiError | None = None
    try:
        yield
    except HeptiError as failure:
        error = failure
    except (OSError, MemoryError) as failure:
        kind = HeptiError if is_misnamed(failure) else HostError
        error = kind(refused_file(failure) or str(failure) or "out of memory")
    world.agree(error)


def patiently(stage: Callable[Concatenate[Machine, P], R]) -> Callable[Concatenate[Machine, P], R]:
    """Let ranks wait longer for each other in a stage that may take long on some of them: measuring, planning, reading weights."""

    @wraps(stage)
    def patient(machine: Machine, *args: P.args, **options: P.kwargs) -> R:
        with machine.world.patience.slower():
            return stage(machine, *args, **options)

    return patient


def start(threads: int | None, emulate: Sequence[str] | None = None, deadline: float = 0.0) -> Machine:
    """Start MPI, divide each host's cores among its ranks and fix the number of threads. Collective.

    `emulate`: per rank, the board that it shall pretend to be; `deadline`: seconds that a rank waits for another.
    """
    world, emulations = Comm.world(deadline), []
    with together(world):
        if emulate is not None and len(emulate) != world.size:
            both = f"{counted(len(emulate), 'entries')}, the job has {counted(world.size, 'ranks')}"
            raise PlanError(f"--emulate has {both}; start one for each {with_ranks(len(emulate))}")
        emulations.append(Emulation(None if emulate is None else emulate[world.rank]))
    emulation = emulations[0]
    _all_or_none(world, emulation)
    threads = threads or (1 if emulation.on else None)
    whole, part, own = widen_affinity(world, divide=threads is None)
    with together(world):
        if threads is not None and threads > len(whole):
            raise PlanError(f"--threads {threads} is more than the {counted(len(whole), 'cores')} of {host_name()}")
    hosts = world.gather_all(host_name())
    alone = threads or own  # who sets the threads means them
    if threads is None and hosts.count(host_name()) > 1 and may_use(whole):
        alone = len(whole)
    return machine_of(world, Cores(world.rank, hosts, part, whole, threads or own, alone), emulation)


def _all_or_none(world: Comm, emulation: Emulation) -> None:
    """Refuse a job in which only some ranks pretend to be boards: how ranks measure, exchange and take turns goes by it."""
    told = world.gather_all([host_name(), emulation.on])
    bare = [f"rank {rank} on {host}" for rank, (host, on) in enumerate(told) if not on]
    with together(world):
        if world.rank == 0 and 0 < len(bare) < world.size:
            said = f"{bare[0]}{f' and {len(bare) - 1} more' if len(bare) > 1 else ''} of {counted(world.size, 'ranks')}"
            mend = "set HEPTI_EMULATE_FILE for all of them (mpirun -x HEPTI_EMULATE_FILE), or --emulate, or neither"
            raise PlanError(f"no board is given for {said}; {mend}")


def machine_of(world: Comm, cores: Cores, emulation: Emulation) -> Machine:
    """Configure this process to compute with its threads and to wait as suits the host. Collective."""
    pool.configure(cores.threads, one_pool=not cores.two_ways)
    crowd = sum(wanted for host, wanted in world.gather_all([host_name(), cores.threads]) if host == host_name())
    latencies = world.gather_all(emulation.latency_seconds)  # of each one's link: a message travels on two
    if any(latencies):
        own = latencies[world.rank]
        world.latencies = [0.0 if host == host_name() else one + own for host, one in zip(cores.hosts, latencies)]
    exchanges = Exchanges(world, "sleep" if emulation.on else "yield" if crowd > len(cores.whole) else "spin")
    return Machine(world, cores, exchanges, emulation, world.gather_all(emulation.said))


def versions(machine: Machine, spec: ModelSpec) -> dict[str, str]:
    """Return what a profile must have been measured with to be of use again for a model."""
    from hepti_mpi.engine import sessions

    emulated = {profiles.EMULATION: ",".join(str(board) for board in machine.boards)} if any(machine.boards) else {}
    formats = profiles.in_formats(spec.product_formats)
    return {"hepti_mpi": __version__, "mpi": Comm.library(), **sessions.versions(), **emulated, **formats}


def processor() -> str:
    """Return what kind of processor this host has, and how many cores."""
    words = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines() if ":" in line)
    known = {name.strip().lower(): " ".join(value.split()) for name, value in words.items()}
    kind = known.get("model") if "hardware" in known or "revision" in known else known.get("model name")  # a Raspberry Pi has both
    return f"{kind or platform.machine()}, {counted(os.cpu_count() or 1, 'cores')}"


def made() -> dict[str, str]:
    """Return the date and what this host is, for what is recorded."""
    return {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "machine": f"{host_name()}, {processor()}"}


@patiently
def measured_profile(
    machine: Machine, spec: ModelSpec, path: Path | None, fresh: bool, required: bool, say: Say, known: Sequence[ClusterProfile] = (),
    must_keep: bool = False,
) -> ClusterProfile:  # fmt: skip
    """Return the saved profile where it still matches this job, else measure and save. Collective.

    `required`: a saved profile that does not match is an error (the user named it) instead of a reason to measure.
    `known`: on rank 0, those that were measured before, of these hosts and maybe more. `must_keep`: that it cannot be saved is an error.
    """
    world, cores = machine.world, machine.cores
    nodes = [tuple(own) for own in world.gather_all([host_name(), len(cores.whole), cores.threads, cores.alone_threads])]
    shape, using = (spec.hidden, spec.ffn), versions(machine, spec) if world.rank == 0 else {}
    saved: list[ClusterProfile | None] = [None]
    with together(world):
        parts = [part for one in known if (part := profiles.of_hosts(one, [host for host, *_ in nodes])) is not None]
        if parts:
            saved[0], _ = profiles.matching(parts, nodes, using, shape)
        if saved[0] is None and world.rank == 0 and path is not None and not fresh and (path.exists() or required):
            saved[0] = _usable(path, nodes, using, shape, required, say)
    content, trusted = world.from_root([None if saved[0] is None else saved[0].to_json(), required or bool(known)])
    if content is not None:
        found = profiles.from_json(content)
        doubt = None if trusted else _doubted(machine, spec, found, path)
        if doubt is None:
            return found
        say(doubt)
    say(f"measuring {counted(world.size, 'ranks')}")
    using, date = world.from_root([using, made()["date"]])
    profile = replace(_measured(machine, spec, using), date=date)
    for host, others in _busy(profile).items():
        say(f"others had {others:.0%} of the cores of {host} meanwhile: it seems too slow, and is measured again once they have less")
    with together(world):
        if world.rank == 0 and path is not None:
            try:
                _keep(profile, path)
            except ProfileError as error:
                if must_keep:
                    raise ProfileError(f"{error}; name another file with --output") from None
                say(f"the profile is not kept: {error}")  # the run can do without; the next one measures again
    return profile


def _doubted(machine: Machine, spec: ModelSpec, profile: ClusterProfile, path: Path | None) -> str | None:
    """Say why a saved profile is not what the ranks can do now, None where nothing speaks against it. Collective."""
    ratios, hosts = _sooner(machine, spec, profile), profile.hosts
    rank = int(np.argmax(ratios))
    why = "had other work when that was measured"
    if ratios[rank] >= SOONER:
        return f"rank {rank} on {hosts[rank]} is {ratios[rank]:.1f} times as fast as in profile {path}: it {why}"
    busy = _busy(profile)
    if not busy or machine.emulation.on:
        return None
    looks = machine.cores.leads and hosts[machine.world.rank] in busy
    now = machine.world.gather_all(load.others_now(machine.cores.whole, LOOK_SECONDS) if looks else 1.0)
    rests = [host for rank, host in enumerate(hosts) if host in busy and now[rank] < busy[host] / 2]
    return f"{rests[0]} has less other work than when profile {path} was measured" if rests else None


def _busy(profile: ClusterProfile) -> dict[str, float]:
    """Return the part of the cores that others had, of each host where that is too much."""
    return {node.host: node.other_work for node in profile.nodes if node.other_work > BUSY}


def _sooner(machine: Machine, spec: ModelSpec, profile: ClusterProfile) -> list[float]:
    """Return how many times as fast each rank is now as its profile says, 1 of one that does not look: of a host that one rank may have
    whole the first rank looks so, alone as it was measured, since all of that host was measured within the same seconds. Collective."""
    cores, ratio = machine.cores, 1.0
    if not machine.emulation.on and (cores.leads or not cores.two_ways):
        from hepti_mpi.engine import glance

        ratio = glance.sooner(cores, spec, profile.nodes)
    return [float(one) for one in machine.world.gather_all(ratio)]


def _measured(machine: Machine, spec: ModelSpec, using: dict[str, str]) -> ClusterProfile:
    """Measure the ranks. Collective. Raises ModelError for a model that writes by an attention of which no cache is kept."""
    from hepti_mpi.engine import caching, measuring

    with together(machine.world):
        for block in dict.fromkeys(layer.attention for layer in spec.each() if spec.generates):
            caching.check_cached(block)
    return measuring.measured(machine.world, machine.exchanges, machine.emulation, machine.cores, spec, using)


def _keep(profile: ClusterProfile, path: Path) -> None:
    """Write a profile. Raises ProfileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"folder {path.parent} cannot be made: {reason_of(error)}") from None
    profile.save(path)


def _usable(
    path: Path, nodes: list[tuple[str, int, int, int]], using: dict[str, str], shape: tuple[int, int], required: bool, say: Say
) -> ClusterProfile | None:  # fmt: skip
    try:
        profile, reason = profiles.matching(profiles.load_all(path), nodes, using, shape)
    except ProfileError as error:
        if required:
            raise
        say(str(error))
        return None
    if profile is None and required:
        again = "measure again with: mpirun -hostfile FILE python -m hepti_mpi profile --fresh"
        raise ProfileError(f"profile {path} is of other hosts or settings: {reason}; {again}")
    if profile is None:
        say(f"profile {path} does not match: {reason}")
    return profile


