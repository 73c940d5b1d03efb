"""Steps of texts under way, done by all ranks of a plan: each computes its heads and columns of all rows, and two sums a layer bring
them together. Rank 0 says what a step is, with the first message of it; the others follow. A piece of a prompt may be cut into tiles of
rows: the sums of one travel while the next is computed.

Knows segments, caches and exchanges; does not know what is asked, nor what is chosen of the scores.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.engine import caching, sessions
from hepti_mpi.engine.geometry import Geometry, Runs, Sum
from hepti_mpi.engine.machine import Machine
from hepti_mpi.engine.orders import END, REST, Order, numbers_in
from hepti_mpi.engine.packing import asked
from hepti_mpi.engine.state import State, attentions
from hepti_mpi.engine.words import Words
from hepti_mpi.models.attention import angles
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.sampling import Scores
from hepti_mpi.planning.memory import FULL
from hepti_mpi.planning.work import step_work
from hepti_mpi.program.buffers import Laid, buffers
from hepti_mpi.program.ops import Cast
from hepti_mpi.program.plan import Wire
from hepti_mpi.program.steps import Compute, Program, Sync
from hepti_mpi.weights.slices import DecodingPart
from hepti_mpi.weights.store import Store

GEOMETRIES = 32  # shapes of steps that are kept ready
ROWS = 128  # the most of a step, where there are fewer slots
ROOM = -1  # the number of the buffer for what comes of other ranks' terms

Buffer = tuple[int, str]  # its number, and the type of its numbers


class Decoder:
    """The part of this rank in the steps of a job."""

    def __init__(
        self, machine: Machine, part: DecodingPart, slots: int, positions: int, active: tuple[int, ...] | None = None, cache: str = FULL
    ) -> None:  # fmt: skip
        """Make communicators. Collective; every rank of the job calls it, also those the plan leaves out, and then `build`.

        `active`: the ranks that compute, where they are not those of the part's plan; `cache`: the type of numbers of keys and values.
        """
        world, spec, plan = machine.world, part.spec, part.plan
        self.machine, self.part, self.spec, self.rank, self.slots, self.positions = machine, part, spec, world.rank, slots, positions
        self.cache = cache
        active = plan.active if active is None else active
        self.members = sorted({0, *active})
        self.is_active = world.rank in active
        self.layers, self.group = world.subset(active), world.subset(self.members)
        for comm in (self.layers, self.group):
            if comm is not None:
                comm.polite = machine.emulation.on
        self.threads = machine.cores.use(machine.cores.has_host(active))
        self.message = np.zeros(numbers_in(slots) + spec.hidden, np.float32)
        self.rows = max(ROWS, slots)
        self.memory: dict[Buffer, Array] = {}
        self.segments: dict[tuple[str, ...], caching.CachedSegment] = {}  # by the values that they write
        self.geometries: OrderedDict[tuple[int, ...], Geometry] = OrderedDict()
        self._adopt(part.program)
        self.x = np.zeros((self.rows, spec.hidden), np.float32)  # what rank 0 sends where it has no part
        self.resting = False
        self.turns = count()
        self.spent = {"compute_seconds": 0.0, "wire_seconds": 0.0, "words_seconds": 0.0}

    def build(self, store: Store) -> None:
        """Make sessions and caches. Raises ModelError, CapacityError."""
        if self.is_active:
            self._build_layers(store)
        if self.group is not None:
            bounds = [self.part.words_of(rank) for rank in self.members]
            self.words = Words(store, self.part, self.threads, self.group, bounds, self.rows)

    def _build_layers(self, store: Store) -> None:
        part, spec = self.part, self.spec
        blocks = attentions(spec, part.plan.numbers)
        for block in dict.fromkeys(blocks):
            caching.check_cached(block)
        self.state = State(blocks, part.computed("kv_heads"), self.slots, self.positions, part.plan.first, self.cache)
        every = np.arange(self.positions)
        self.tables = {block.rotary: angles(block.rotary, every) for block in blocks if block.rotary is not None}
        mode = part.plan.weights_mode[part.rank]
        for step in self.program:
            if isinstance(step, Compute) and not _casts(step):
                self.segments[step.writes] = caching.cached_segment(step, store, part, mode, self.threads, self.cache)

    def _adopt(self, program: Program) -> None:
        """Do the steps of this program from now on."""
        laid = Laid(program)
        self.program, self.interfaces = program, laid.interfaces
        self.numbers: dict[str, Buffer] = {
            name: (number, laid.values[name].dtype) for name, number in buffers(laid).items() if laid.values[name].rows != "root"
        }
        self.first = next(writes[0] for step, (_, writes) in zip(program, laid.interfaces) if isinstance(step, Sync))
        self.last = [writes for step, (_, writes) in zip(program, laid.interfaces) if isinstance(step, Compute)][-1][-1]
        with self.machine.exchanges.lock:  # which is MPI's too
            for geometry in self.geometries.values():
                geometry.free()
        self.geometries.clear()
        self.memory.clear()

    def send_as(self, wire: Wire) -> None:
        """Let sums travel as numbers of another type. Every rank of the plan calls it, between steps; sessions stay as they are."""
        self.part = replace(self.part, plan=replace(self.part.plan, wire=wire))
        self._adopt(self.part.program)

    # rank 0

    def step(self, order: Order, x: Array) -> list[Scores]:
        """Do a step with the embedded rows `x` [rows, hidden]; return the scores behind each text. Rank 0 calls it."""
        order.write(self.message.view(np.int32), self.slots)
        np.copyto(self.x[: order.rows], x)
        if order.rows == 1:
            self.message[-self.spec.hidden :] = x[0]
        self._spread()
        return self._perform(order)

    def rest(self) -> None:
        """Let the others sleep until the next step. Rank 0 calls it."""
        if not self.resting:
            self.message.view(np.int32)[0] = REST
            self._spread()
            self.resting = True

    def end(self) -> None:
        """Let the others go. Rank 0 calls it."""
        self.message.view(np.int32)[0] = END
        self._spread()

    def _spread(self) -> None:
        """Bring the message from rank 0 to all, after a rest whenever it comes."""
        assert self.group is not None
        self.group.broadcast(self.message, patient=self.resting)
        self.resting = False

    # the others

    def follow(self) -> None:
        """Take part in all steps until rank 0 ends them; return at once on a rank without a part."""
        if self.group is None or self.group.rank == 0:
            return
        numbers = self.message.view(np.int32)
        while True:
            self._spread()
            if numbers[0] == END:
                return
            if numbers[0] == REST:
                self.resting = True
                continue
            self._perform(Order.read(numbers, self.slots))

    # all

    def _perform(self, order: Order) -> list[Scores]:
        assert self.group is not None
        emulation, rows = self.machine.emulation, order.rows
        emulation.refresh()
        with emulation.in_time(), self.machine.cores.apart_from_threads():
            if rows > 1:
                self.group.broadcast(self.x[:rows])
            elif self.rank:
                self.x[0] = self.message[-self.spec.hidden :]
            if self.is_active:
                self._to_words(order, self._layers(order, self.x))
            found = self._scores(order) if order.scored else []
            emulation.show() if self.rank == 0 else emulation.keep_time()
        return found

    def _layers(self, order: Order, x: Array) -> Array:
        """Bring the first rows of `x` through the layers; return what becomes of them, until the next step."""
        self.state.copy(order.copies)
        parts = order.cut(self.part.plan.prompt_tiles)
        tiles = [self._geometry(part, begin, len(parts)) for begin, part in parts]
        pairs = []
        for tile, (begin, part) in zip(tiles, parts):
            lengths = np.array(part.lengths, np.int64)
            tile.tell(lengths, self.tables)
            np.copyto(tile.values[self.first], x[begin : begin + part.rows])
            pairs.append(float((part.each * (lengths + part.each)).sum()))
        self._run(tiles, pairs)
        rows = self._buffer(self.numbers[self.last])[: order.rows]
        if not np.isfinite(rows).all():
            self._lose(order, rows)
        return rows

    def _run(self, tiles: Sequence[Geometry], pairs: Sequence[float]) -> None:
        """Compute tile after tile up to the next sum, each when its last one is there; a sum of a lone tile is done at once. `pairs`: in
        which rows of each attend to keys."""
        emulation, emulated, begin, waited = self.machine.emulation, self.machine.emulation.on, time.perf_counter(), 0.0
        coming: list[threading.Event | None] = [None] * len(tiles)
        for place in range(len(tiles[0].moves)):
            for number, (tile, some) in enumerate(zip(tiles, pairs)):
                waited += self._wait(coming[number])
                runs, add_up = tile.moves[place]
                for run, step in runs:
                    if emulated:
                        self._work(run, step_work(self.spec, self.part.plan, self.part.rank, step, tile.order.rows, some))
                    else:
                        run()
                if add_up is not None:
                    emulation.show()
                    clock = time.perf_counter()
                    coming[number] = add_up()
                    if coming[number] is None:
                        emulation.rest()
                        waited += time.perf_counter() - clock
        self.spent["compute_seconds"] += time.perf_counter() - begin - waited
        self.spent["wire_seconds"] += waited

    def _wait(self, coming: threading.Event | None) -> float:
        """Wait for a sum; return the seconds."""
        if coming is None or coming.is_set():
            return 0.0
        begin = time.perf_counter()
        self.machine.exchanges.wait([coming])
        self.machine.emulation.rest()
        return time.perf_counter() - begin

    def _lose(self, order: Order, rows: Array) -> None:
        """Make NaN of rows that are not finite and of those behind them in their texts, and of their keys, to which others will attend:
        products that round rows may have lost it. Behind the last layer it is still to be seen, since each adds to what it reads."""
        texts = rows.reshape(order.count, order.each, -1)
        for number, (text, length) in enumerate(zip(texts, order.lengths)):
            bad = np.flatnonzero(~np.isfinite(text).all(axis=1))
            if len(bad):
                text[bad[0] :] = np.nan
                for keys in self.state.keys:
                    keys[order.first + number, :, length + bad[0] : length + order.each] = np.nan

    def _to_words(self, order: Order, hidden: Array) -> None:
        """Bring the rows behind which scores are wanted to the words."""
        if order.scored:
            np.copyto(self.words.x[: order.scored], hidden if order.every else hidden[order.each - 1 :: order.each])

    def _work(self, run: Callable[[], None], work: Work) -> None:
        self.machine.emulation.go_on(run, work)

    def _scores(self, order: Order) -> list[Scores]:
        """Return, on rank 0, the scores of the rows that are at the words. Collective."""
        begin = time.perf_counter()
        self._work(partial(self.words.compute, order.scored), self._of_words(order.scored))
        self.machine.emulation.show()
        found = self.words.scores(order.scored, order.candidates)
        self.machine.emulation.rest()
        self.spent["words_seconds"] += time.perf_counter() - begin
        return found

    def _of_words(self, rows: int) -> Work:
        """Return the work of scoring; only an emulated board asks."""
        if not self.machine.emulation.on:
            return Work()
        return Work(((rows, float(self.spec.hidden * len(self.words.ids)), self.part.words_slices[0].format.name),))

    # preparation: nothing below runs for a shape of steps that was seen before

    def _geometry(self, order: Order, begin: int, tiles: int) -> Geometry:
        """Return what is ready for a step, or for one of several tiles of it, of which this one begins at a row."""
        shape = (order.first, order.count, order.each, begin, tiles)
        known = self.geometries.get(shape)
        if known is not None:
            self.geometries.move_to_end(shape)
            return known
        made = self.geometries[shape] = self._prepare(order, begin, tiles)
        if len(self.geometries) > GEOMETRIES:
            _, oldest = self.geometries.popitem(last=False)
            with self.machine.exchanges.lock:  # which is MPI's too
                oldest.free()
        return made

    def _prepare(self, order: Order, begin: int, tiles: int) -> Geometry:
        rows = order.rows
        values = {name: self._buffer(number)[begin : begin + rows] for name, number in self.numbers.items()}
        told: dict[str, Array] = {"shape": np.array([order.count, order.each, -1], np.int64), "reach": np.zeros(order.count, np.int32)}
        told["most"] = np.zeros((), np.int32)
        kinds = [(rotary, which, kind) for rotary in self.tables for which, kind in enumerate(("cos", "sin"))]
        told |= {caching.whole_table(kind, rotary): self.tables[rotary][which] for rotary, which, kind in kinds}
        wanted = {name for segment in self.segments.values() for name in segment.asked}
        turned = {asked(kind, rotary): (rotary, which) for rotary, which, kind in kinds if asked(kind, rotary) in wanted}
        told |= {name: np.empty((rows, len(rotary.frequencies)), np.float32) for name, (rotary, _) in turned.items()}
        made, runs, known = Geometry(order, values, told, turned), Runs(), dict[tuple[int, int], Sum]()
        for step, (reads, writes) in zip(self.program, self.interfaces):
            if isinstance(step, Compute) and _casts(step):
                runs.append((sessions.cast(values[reads[0]], values[writes[0]]), step))
            elif isinstance(step, Compute):
                segment = self.segments[step.writes]
                named = dict(zip((*step.reads, *step.writes), (values[name] for name in (*reads, *writes))))
                runs += [(partial(named[name].fill, 0), replace(step, ops=())) for name in segment.zeros]
                run = self._bound(segment, named | told, order)
                runs += [(run, step)] if run is not None else []
            elif step.kind == "allreduce":  # what comes from rank 0 is there
                assert self.layers is not None
                terms, sums = values[reads[0]], values[writes[0]]
                both = terms.ctypes.data, sums.ctypes.data  # few buffers have the values of all layers
                if both not in known:
                    known[both] = self.layers.summing(terms, sums) if tiles == 1 else self._travelling(made, terms, sums, begin)
                made.moves.append((runs, known[both]))
                runs = []
        made.moves.append((runs, None))
        return made

    def _travelling(self, at: Geometry, terms: Array, sums: Array, row: int) -> Sum:
        """Return what begins a sum of a tile whose first row is `row`, and returns what tells that it is there."""
        assert self.layers is not None
        exchanges, room = self.machine.exchanges, self._buffer((ROOM, str(terms.dtype)))[row : row + len(terms)]
        with exchanges.lock:  # preparing calls MPI
            add_up, spread = exchanges.sum_up(terms, sums, room, exchanges.ranks_of(self.layers), 2 * row)
        at.rings += [add_up, spread]

        def begin() -> threading.Event:
            done, add_up.turn = threading.Event(), next(self.turns)  # as the sums are wanted
            spread.turn = add_up.turn
            exchanges.start(add_up, aside=True, then=[(spread, done)])
            return done

        return begin

    def _bound(self, segment: caching.CachedSegment, values: dict[str, Array], order: Order) -> Callable[[], None] | None:
        if segment.session is None:
            return None
        binding = segment.session.io_binding()
        for name in (*segment.inputs, *segment.told, *segment.asked, *segment.turns):
            sessions.bind(binding.bind_input, name, values[name])
        for name in segment.outputs:
            sessions.bind(binding.bind_output, name, values[name])
        for layer in segment.layers:
            keys, rows = self.state.views(layer, order.first, order.count)
            for past, whole, array in ((caching.KEYS, caching.ALL_KEYS, keys), (caching.ROWS, caching.ALL_ROWS, rows)):
                sessions.bind(binding.bind_input, past.format(layer), array)
                sessions.bind(binding.bind_output, whole.format(layer), array)
        return sessions.runner(segment.session, binding)

    def _buffer(self, which: Buffer) -> Array:
        if which not in self.memory:
            self.memory[which] = np.zeros((self.rows, self.spec.hidden), which[1])
        return self.memory[which]


def _casts(step: Compute) -> bool:
    """Tell whether a step is a cast of what travels, which needs no session of its own."""
    return all(isinstance(op, Cast) for op in step.ops)
