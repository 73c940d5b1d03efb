"""Do the steps of a program on one rank: run segments, exchange values, note the time of each step.

Knows buffers and steps; does not know where requests come from, what the model means or how the plan was found.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.engine.machine import Machine
from hepti_mpi.engine.packing import Rows
from hepti_mpi.engine.routes import TAGS, Relay, Route, Router
from hepti_mpi.engine.segments import Segments
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.buffers import Laid, buffers, dependencies, interface, named
from hepti_mpi.program.ownership import Division, Holding, division
from hepti_mpi.program.steps import EMBEDDED, OUTER, RESULT, Compute, Sync, Value
from hepti_mpi.weights.slices import Part

if TYPE_CHECKING:
    from hepti_mpi.engine.sessions import Segment

GEOMETRIES = 64  # prepared batch shapes that are kept: one takes as long as a tenth of a short request, and some 0.2 MB
PREPARED = 16  # of them, before the first batch
GIVEN, FOUND = -1, -2  # the numbers of the buffers for what comes to the root and what it finds
ASKED_BYTES = 32 << 20  # of masks and the like that they may hold, if it is more than one


@dataclass
class _Geometry:
    """All that is fixed for batches of the same request lengths: where rows lie, views of the buffers, bindings, routes."""

    places: Division
    values: dict[str, np.ndarray]
    runs: dict[int, Callable[[], None] | None] = field(default_factory=dict)
    works: dict[int, Work] = field(default_factory=dict)  # of the runs, where a board is emulated
    zeros: dict[int, list[np.ndarray]] = field(default_factory=dict)
    routes: dict[int, tuple[Route, ...]] = field(default_factory=dict)  # one after the other
    packings: dict[tuple[str, int | None], Rows] = field(default_factory=dict)  # the bindings point into them


class Engine:
    """The layers of one model on one rank of a plan."""

    def __init__(self, machine: Machine, part: Part, segments: Segments) -> None:
        """Build sessions and communicators. Collective; every rank of the job calls it, also those the plan leaves out."""
        world, (spec, plan, program) = machine.world, (part.spec, part.plan, part.program)
        self.spec, self.plan, self.program, self.rank = spec, plan, program, world.rank
        self.exchanges, self.emulation, self.cores = machine.exchanges, machine.emulation, machine.cores
        self.active = plan.active
        self.is_active = world.rank in self.active
        self.rests_alone = not self.cores.host_computes(self.active)  # else who computes there says how fast its host is
        self.alone = self.cores.has_host(self.active)  # then it has the cores of the ranks that rest
        self.threads = self.cores.use(self.alone)
        self.takes_part = self.is_active or world.rank == 0  # the root has the input and wants the result
        self.in_order = plan.collectives == "mpi"
        by_mpi = self.in_order and not self.emulation.on  # who waits there spins, and would take the cores of emulated boards
        self.layers = world.subset(self.active) if by_mpi else None  # those who compute
        self.outer = world.subset(sorted({0, *self.active})) if by_mpi else None  # and the root
        self.segments: dict[int, Segment] = {}
        if self.is_active:
            for place, step in enumerate(program):
                if isinstance(step, Compute):
                    self.segments[place] = segments.get(step, part, plan.weights_mode[world.rank], self.threads)
        self.weight_bytes = sum(piece.bytes for piece in part.of_layers)
        self.values, self.numbers = (laid := Laid(program)).values, buffers(laid)
        self.interfaces = [interface(self.values, step) for step in program]
        needed = dependencies(program)
        self.missing = [len(places) for places in needed]
        self.followers: list[list[int]] = [[] for _ in program]
        for place, places in enumerate(needed):
            for earlier in places:
                self.followers[earlier].append(place)
        # exchanges that hand on what another one brings, and wait for nothing else
        self.relays = [[later for later in self.followers[place] if isinstance(program[later], Sync) and self.missing[later] == 1]
                       if isinstance(step, Sync) else [] for place, step in enumerate(program)]  # fmt: skip
        self.memory: dict[int, np.ndarray] = {}
        self.capacity = 0
        self.geometries: OrderedDict[tuple[int, ...], _Geometry] = OrderedDict()
        self.seconds = np.zeros(len(program))  # of the last request, per step: computing, or waiting for an exchange
        self.began = np.zeros(len(program))  # when, by the board's clock

    def run(self, lengths: Sequence[int], embedded: np.ndarray | None) -> np.ndarray | None:
        """Return the last hidden state [rows, hidden] on rank 0, None elsewhere; `embedded` [rows, hidden] is rank 0's.

        `lengths`: rows of each request of the batch. The result is a buffer that the next call overwrites.
        """
        if not self.takes_part:
            return None
        with self.exchanges.lock:  # preparing calls MPI
            geometry = self._geometry(tuple(lengths))
        self.cores.use(self.alone)
        self.emulation.refresh()
        if embedded is not None:
            np.copyto(geometry.values[EMBEDDED], embedded)
        with self.emulation.in_time(), self.cores.apart_from_threads():
            if self.in_order:
                self._in_order(geometry)
            else:
                self._by_dependencies(geometry)
            self.emulation.show() if self.rank == 0 else self.emulation.keep_time()
        return geometry.values.get(RESULT)

    def prepare(self, batches: Iterable[Sequence[int]]) -> None:
        """Make buffers and bindings for batches of these request lengths, the first of them, before they are timed."""
        if self.takes_part:
            shapes = list(dict.fromkeys(map(tuple, batches)))
            for lengths in sorted(shapes[:PREPARED], key=sum, reverse=True):  # the largest first: it sizes the buffers
                self._geometry(lengths)

    def warm_up(self) -> None:
        """Answer a few rows of zeros, so that connections, threads and pages are there before the first request. Collective."""
        rows = min(self.plan.planned_rows, 4 * len(self.active))
        self.run((rows,), np.zeros((rows, self.spec.hidden), np.float32) if self.rank == 0 else None)

    def close(self) -> None:
        """Give up buffers and what MPI holds for the exchanges; the next request makes them again."""
        for geometry in self.geometries.values():
            self._free(geometry)
        self.geometries.clear()
        self.memory.clear()

    @staticmethod
    def _free(geometry: _Geometry) -> None:
        for route in chain.from_iterable(geometry.routes.values()):
            if route.transfer is not None:
                route.transfer.free()

    # a request

    def _in_order(self, at: _Geometry) -> None:
        """Do step after step; every exchange is waited for, and is MPI's own where no board is emulated."""
        clock = self.emulation.now()
        for place, step in enumerate(self.program):
            self.began[place] = clock
            if place in at.routes:
                self._in_turn(place, at)
            elif isinstance(step, Sync):
                self._collective(place, step, at)
            elif self.is_active:
                self._compute(place, at)
            now = self.emulation.now()
            self.seconds[place], clock = now - clock, now

    def _by_dependencies(self, at: _Geometry) -> None:
        """Start every exchange as soon as its input is there, and compute step after step: a later one that goes before what is late makes
        all wait that long who want what that makes."""
        missing = self.missing.copy()
        due = deque(place for place, step in enumerate(self.program) if isinstance(step, Compute))
        ready: set[int] = set()
        flying: dict[int, threading.Event | None] = {}
        relayed: set[int] = set()  # departures that are not to be made here
        self.seconds[:] = 0
        left = len(self.program)
        new = [place for place, count in enumerate(missing) if not count]
        while left:
            new.sort(key=lambda place: (isinstance(self.program[place], Compute), -place))  # what can be computed is known first
            while new:
                place = new.pop()
                if isinstance(self.program[place], Compute):
                    ready.add(place)
                elif place not in relayed:
                    relays = self._relays(place, at)
                    flying[place] = self._depart(place, at, bool(due) and due[0] in ready, relays)
                    for later, (_, done) in relays.items():
                        flying[later], self.began[later] = done, self.began[place]
                    relayed.update(relays)
            arrived = [place for place, done in flying.items() if done is None or done.is_set()]
            if not arrived and due and due[0] in ready:
                place = due.popleft()
                begin = self.began[place] = self.emulation.now()
                if self.is_active:
                    self._compute(place, at)
                self.seconds[place] = self.emulation.now() - begin
                arrived = [place]
            elif not arrived:
                begin = self.emulation.now()
                self.exchanges.wait([done for done in flying.values() if done is not None])
                self.emulation.rest()
                place = min(flying)  # the exchange that is waited for
                if not self.seconds[place]:
                    self.began[place] = begin
                self.seconds[place] += self.emulation.now() - begin
                continue
            for place in arrived:
                if place in flying:
                    del flying[place]
                    if place in relayed and at.routes[place][0].before:  # copied by a thread, which on a board takes this one's time
                        self.emulation.go_on(lambda: None, at.routes[place][0].begins)
                    self._end(at.routes[place][0])
                left -= 1
                for follower in self.followers[place]:
                    missing[follower] -= 1
                    if not missing[follower]:
                        new.append(follower)

    def _compute(self, place: int, at: _Geometry) -> None:
        for value in at.zeros[place]:
            value.fill(0)
        run = at.runs[place]
        if run is not None:
            self.emulation.go_on(run, at.works[place]) if self.emulation.on else run()

    def _relays(self, place: int, at: _Geometry) -> dict[int, tuple[Relay, threading.Event]]:
        """Return the exchanges that begin when one is done, whatever this rank computes then: others wait for what is handed on."""
        route, found = at.routes[place][0], {}
        if route.transfer is not None and not route.ends.calls:  # else what came has to be added first
            for later in self.relays[place]:
                if (onward := at.routes[later][0]).transfer is not None:
                    found[later] = Relay(onward), threading.Event()
        return found

    def _depart(
        self, place: int, at: _Geometry, aside: bool, relays: dict[int, tuple[Relay, threading.Event]]
    ) -> threading.Event | None:  # fmt: skip
        """Start an exchange, `aside` when there is something to compute; return what tells that it is done, None when nothing travels."""
        self.began[place] = self.emulation.now()
        return self._begin(at.routes[place][0], aside, tuple(relays.values()))

    def _begin(
        self, route: Route, aside: bool = False, then: Sequence[tuple[Relay, threading.Event]] = ()
    ) -> threading.Event | None:  # fmt: skip
        if route.before:
            self.emulation.go_on(route.begin, route.begins)
        if route.transfer is None:
            return None
        self.emulation.show()
        begin = time.perf_counter()
        started = self.exchanges.start(route.transfer, aside, then)
        self.emulation.took(time.perf_counter() - begin)
        return started

    def _end(self, route: Route) -> None:
        if route.after or route.sums:
            self.emulation.go_on(route.end, route.ends)

    def _in_turn(self, place: int, at: _Geometry) -> None:
        """Do an exchange and wait until it is done."""
        for route in at.routes[place]:
            started = self._begin(route)
            if started is not None:
                self.exchanges.wait([started])
                self.emulation.rest()
            self._end(route)

    def _collective(self, place: int, sync: Sync, at: _Geometry) -> None:
        (reads, *more), (writes, *goals) = self.interfaces[place]
        values = at.values
        if sync.kind in OUTER:
            self._outer(sync, reads, writes, at)
        elif self.layers is None:
            return
        elif sync.kind == "allreduce":
            self.layers.allreduce(values[reads], values[writes])
        elif sync.kind == "reduce_scatter":
            self.layers.reduce_scatter(values[reads], values[writes], self._of_active(at))
        elif sync.kind == "allgatherv":
            for name, goal in zip((reads, *more), (writes, *goals)):
                self.layers.allgather_rows(values[name], values[goal], self._of_active(at))
        else:
            np.copyto(values[writes], values[reads][at.places.own(0, self.rank)])

    def _outer(self, sync: Sync, reads: str, writes: str, at: _Geometry) -> None:
        """Bring the embedding from the root to the active ranks, or the result back; the root's part is where it is to be (`_own`)."""
        assert self.outer is not None
        root, counts = self.rank == 0, [at.places.counts[0][rank] for rank in sorted({0, *self.active})]
        if sync.kind == "bcast":
            self.outer.broadcast(at.values[reads if root else writes])
        elif sync.kind == "scatterv":
            self.outer.scatter_rows(at.values[reads if root else writes], counts)
        else:
            self.outer.gather_rows(at.values[writes if root else reads], counts)

    def _of_active(self, at: _Geometry) -> list[int]:
        return [at.places.counts[0][rank] for rank in self.active]

    # preparation: nothing below runs for a batch shape that was seen before

    def _geometry(self, lengths: tuple[int, ...]) -> _Geometry:
        known = self.geometries.get(lengths)
        if known is not None:
            self.geometries.move_to_end(lengths)
            return known
        rows = sum(lengths)
        if rows > self.capacity:
            self.close()
            self.capacity = rows
        made = self._prepare(lengths, rows)
        self.geometries[lengths] = made
        while len(self.geometries) > GEOMETRIES or (len(self.geometries) > 1 and self._asked_bytes() > ASKED_BYTES):
            self._free(self.geometries.popitem(last=False)[1])
        return made

    def _asked_bytes(self) -> int:
        return sum(rows.bytes for geometry in self.geometries.values() for rows in geometry.packings.values())

    def _prepare(self, lengths: tuple[int, ...], rows: int) -> _Geometry:
        places = division(self.plan, lengths, 1, self.spec.heads)
        values: dict[str, np.ndarray] = {}
        own = self._own()
        for name, value in self.values.items():
            if value.rows == "root":
                if self.rank == 0:
                    values[name] = self._view(FOUND if name == RESULT else GIVEN, rows, self.spec.hidden, "float32")
            elif self.takes_part and name not in own:
                values[name] = self._view(self.numbers[name], *self._shape(value, places), value.dtype)
        values.update((name, values[root][: self._shape(self.values[name], places)[0]]) for name, root in own.items())
        geometry = _Geometry(places, values)
        router = Router(self.exchanges, self.plan, places, self.values, values)
        for place, step in enumerate(self.program):
            if isinstance(step, Compute):
                if self.is_active:
                    self._bind(place, step, geometry, lengths)
            elif not self.in_order or self.emulation.on:
                geometry.routes[place] = router.in_turn(step, *self.interfaces[place], tag=place * TAGS)
        return geometry

    def _own(self) -> dict[str, str]:
        """Return of which of the root's values the first rows are each value that MPI would bring from it to itself."""
        if self.outer is None or self.rank:
            return {}
        outer = [names for step, names in zip(self.program, self.interfaces) if isinstance(step, Sync) and step.kind in OUTER]
        return {write if read == EMBEDDED else read: read if read == EMBEDDED else write for (read,), (write,) in outer}

    def _shape(self, value: Value, places: Division) -> tuple[int, int]:
        box = places.of(value.width).held(Holding(value.rows, value.columns), value.tile).box(self.rank)
        return box.bottom - box.top, box.right - box.left

    def _bind(self, place: int, step: Compute, at: _Geometry, lengths: Sequence[int]) -> None:
        """Tie the segment of a step to the rows of its tile."""
        segment = self.segments[place]
        rows = at.places.tile(step.tile)
        if step.distribution == "rows":
            rows = at.places.own(step.tile, self.rank)
        which = (step.distribution, step.tile)
        if which not in at.packings:
            whole = self.plan.keeps_requests and step.distribution == "rows"
            at.packings[which] = Rows(tuple(lengths), rows.start, rows.stop, rows.start if whole else 0)
        found: dict[str, np.ndarray] = {}
        for op in step.ops:
            found |= at.packings[which].inputs(op, segment.tables.get(op))
        for name in step.reads:
            found[name] = at.values[named(self.values, name, step.tile)]
        for name in step.writes:
            value = at.values[named(self.values, name, step.tile)]
            found[name] = value[rows] if name in self.values else value
        at.zeros[place] = [found[name] for name in segment.zeros]
        at.runs[place] = segment.bind(found) if rows.stop > rows.start else None
        if self.emulation.on:
            at.works[place] = step_work(self.spec, self.plan, self.rank, step, rows.stop - rows.start, *at.packings[which].size)

    def _view(self, number: int, rows: int, width: int, kind: str) -> np.ndarray:
        """Return [rows, width] at the start of buffer `number`, which is made for the largest batch seen."""
        if number not in self.memory or self.memory[number].size < rows * width:
            self.memory[number] = np.empty(max(rows, self.capacity) * width, kind)
        return self.memory[number][: rows * width].reshape(rows, width)
