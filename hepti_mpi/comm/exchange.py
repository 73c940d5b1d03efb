"""Messages that travel while ranks compute: exchanges of blocks of rows on persistent point-to-point requests.

Knows blocks, peers and bytes; does not know what values mean or when they are needed. MPI has no progress of its own: whoever waits
here moves all pending exchanges on, and a thread does so while the main thread computes (ONNX Runtime has released the GIL then).
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from hepti_mpi import splits
from hepti_mpi.comm.latency import Late
from hepti_mpi.comm.pauses import PAUSES, nap
from hepti_mpi.comm.precedence import go_first
from hepti_mpi.comm.ranks import Comm
from hepti_mpi.comm.sizes import RING_BYTES

PIECE_BYTES = 60 << 10  # below the TCP transport's eager limit: sent at once, without the receiver's consent
PROGRESS_SECONDS = 500e-6
LOOKS = 2  # in vain, until nothing has come: MPI looks and then moves on a little, so what came is seen by the next look
IDLE_WIRE_SECONDS = 0.04

Block = tuple[int, np.ndarray]  # (peer, rows [r, w] of an array, whose columns may be some of it)
Copy = tuple[np.ndarray, np.ndarray]  # (to, from); the types may differ


class Transfer(Protocol):
    """One exchange that is prepared once and used again for every request."""

    def start(self) -> None: ...

    def progress(self) -> bool:
        """Move on without waiting; tell whether all is done."""

    def missing(self) -> list[int]:
        """Return the ranks from whom or to whom something has not come through."""

    def free(self) -> None:
        """Give up what MPI holds for it; it is not under way."""


@dataclass
class _Pending:
    """A transfer under way; `done` is set at its end, when those of `then` begin."""

    transfer: Transfer
    done: threading.Event
    then: Sequence[tuple[Transfer, threading.Event]]


class Direct:
    """Every block goes from its owner straight to who needs it."""

    def __init__(self, requests: Sequence[Any], peers: Sequence[int]) -> None:
        """`peers`: with whom each of `requests` is."""
        from mpi4py import MPI

        self.peers, self.left = list(peers), 0
        self.requests, self.startall, self.testsome = list(requests), MPI.Prequest.Startall, MPI.Request.Testsome
        self.late = any(isinstance(request, Late) for request in self.requests)

    def start(self) -> None:
        self.left = len(self.requests)
        if self.late:
            for request in self.requests:
                request.Start()
        elif self.requests:
            self.startall(self.requests)

    def progress(self) -> bool:
        in_vain = 0
        while self.left and in_vain < LOOKS:
            before, self.left = self.left, self._still_open()
            in_vain = in_vain + 1 if self.left == before else 0
        return not self.left

    def _still_open(self) -> int:
        if self.late:
            return sum([not request.Test() for request in self.requests])
        found = self.testsome(self.requests)
        return 0 if found is None else self.left - len(found)  # None: all are done, also those that `missing` has seen before

    def missing(self) -> list[int]:
        return [peer for peer, request in zip(self.peers, self.requests) if not request.Test()]

    def free(self) -> None:
        for request in self.requests:
            request.Free()
        self.requests = []


class RingGather:
    """Blocks of all ranks go round; each piece is passed on as it arrives, so that uneven blocks take no longer than even ones.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    """

    def __init__(self, own: Sequence[Any], receives: Sequence[Any], forwards: Sequence[Any | None], sides: tuple[int, int]) -> None:
        """`receives` come in this order from the left; `forwards` holds, for each, what passes it on to the right, or None; `sides`:
        the ranks to the left and right."""
        self.sides = sides
        self.own, self.receives, self.forwards, self.place = list(own), list(receives), list(forwards), 0
        self.turn, self.sending = 0, list[RingGather]()  # among the rank's rings under way that have not sent all
        self.waiting: list[Any] = []  # what can be sent and has not been
        self.unsent = 0

    def start(self) -> None:
        self.place, self.waiting = 0, list(self.own)
        self.unsent = len(self.own) + sum(forward is not None for forward in self.forwards)
        for request in self.receives:
            request.Start()
        if self.unsent:
            self.sending.append(self)
        self._send()

    def _send(self) -> None:
        """Send what can be, unless a ring of an earlier turn has not sent all: what that passes on is wanted sooner.

        Turns are as the program's steps, of which each wants what earlier ones give, so that no ring waits for what waits for it.
        """
        if self.waiting and all(ring.turn >= self.turn for ring in self.sending):
            for request in self.waiting:
                request.Start()
            self.unsent -= len(self.waiting)
            self.waiting.clear()
            if not self.unsent:
                self.sending.remove(self)

    def arrived(self, place: int) -> None:
        """Handle what has just come in; a gather passes it on as it is."""

    def progress(self) -> bool:
        for request in self.receives[self.place :]:
            if isinstance(request, Late):
                request.Test()  # it notes when the message came, also behind others that are not to be seen yet
        while self.place < len(self.receives) and self._has(self.receives[self.place]):
            self.arrived(self.place)
            forward = self.forwards[self.place]
            if forward is not None:
                self.waiting.append(forward)
                self._send()
            self.place += 1
        self._send()
        through = self.place == len(self.receives) and not self.unsent
        return through and all(r.Test() for r in (*self.own, *self.forwards) if r is not None)

    @staticmethod
    def _has(request: Any) -> bool:
        return any(request.Test() for _ in range(LOOKS))

    def missing(self) -> list[int]:
        return [self.sides[0] if self.place < len(self.receives) else self.sides[1]]

    def free(self) -> None:
        if self in self.sending:  # of a request that was broken off
            self.sending.remove(self)
        for request in (*self.own, *self.receives, *self.forwards):
            if request is not None:
                request.Free()
        self.own, self.receives, self.forwards = [], [], []


class RingReduce(RingGather):
    """A ring whose pieces gather one term of the sum on each rank that they pass."""

    def __init__(
        self, own: Sequence[Any], receives: Sequence[Any], forwards: Sequence[Any | None], sides: tuple[int, int],
        sums: Sequence[tuple[np.ndarray, ...]],
    ) -> None:  # fmt: skip
        super().__init__(own, receives, forwards, sides)
        self.sums = sums  # per piece: (what came in, this rank's term, where the sum goes)
        short = any(result.dtype == np.float16 for *_, result in sums)
        self.add = _add_short if short else np.add

    def arrived(self, place: int) -> None:
        came, term, result = self.sums[place]
        self.add(came, term, out=result)


Ring = TypeVar("Ring", bound=RingGather)


class Exchanges:
    """The point-to-point side of a communicator: makes transfers, starts them and waits for them."""

    def __init__(self, comm: Comm, wait: str = "sleep", thread: bool = True) -> None:
        """Collective. `wait`: what a waiting rank does between two looks: "spin", "yield" its core or "sleep", where many emulated boards
        share the cores and messages must not wait for any."""
        self.first, self.way = wait == "sleep", wait
        self.rank, self.patience, self.latencies = comm.rank, comm.patience, comm.latencies
        with comm.patience.waiting():
            self.mpi = comm.mpi.Dup()
        self.pause = PAUSES[wait]
        self.lock = comm.turn
        self.watched = False  # whether the main thread looks itself
        self.pending: list[_Pending] = []
        self.sending: list[RingGather] = []
        self.awake = threading.Event()
        self.beginning: deque[_Pending] = deque()
        self.types: dict[tuple[int, int, int], Any] = {}
        self.thread = threading.Thread(target=self._keep_moving, name="progress", daemon=True) if thread else None
        if self.thread is not None:
            self.thread.start()

    # use

    def start(
        self, transfer: Transfer, aside: bool = False, then: Sequence[tuple[Transfer, threading.Event]] = ()
    ) -> threading.Event:  # fmt: skip
        """Begin a transfer and return what is set once it is done.

        `aside`: the caller has something to compute; let the thread do the calls and copies meanwhile. `then`: transfers that begin at its
        end, whatever the caller does, each with what is set once it is done.
        """
        one = _Pending(transfer, threading.Event(), then)
        if aside and self.thread is not None:
            self.beginning.append(one)  # one step, which needs no lock
            self.awake.set()
            return one.done
        with self.lock:
            self._begin()
            transfer.start()
            self.pending += self._moved(one)
            if self.pending:
                self.awake.set()
        return one.done

    def _begin(self) -> None:
        while self.beginning:
            one = self.beginning.popleft()
            one.transfer.start()
            self.pending.append(one)

    @staticmethod
    def _moved(one: _Pending) -> list[_Pending]:
        """Move a transfer on; return what is under way then: itself, or, when it is done, those that were to begin then."""
        if not one.transfer.progress():
            return [one]
        one.done.set()
        for transfer, _ in one.then:
            transfer.start()
        return [_Pending(transfer, done, ()) for transfer, done in one.then]

    def poll(self) -> None:
        """Move all pending transfers on."""
        with self.lock:
            self._progress()

    def wait(self, some: Sequence[threading.Event]) -> None:
        """Wait until any of `some` is set, moving all transfers on meanwhile."""
        begin, self.watched = time.perf_counter(), True
        try:
            with self.patience.waiting(self.missing):
                while not any(event.is_set() for event in some):
                    self.poll()
                    if any(event.is_set() for event in some):
                        return
                    self.pause(time.perf_counter() - begin)
        finally:
            self.watched = False

    def missing(self) -> list[int]:
        """Return the ranks that pending transfers wait for; for the thread that watches."""
        if not self.lock.acquire(timeout=1):
            return []
        try:
            return sorted({rank for one in self.pending for rank in one.transfer.missing()})
        finally:
            self.lock.release()

    def _progress(self) -> None:
        self._begin()
        self.pending = [left for one in self.pending for left in self._moved(one)]
        if not self.pending:
            self.awake.clear()
            if self.beginning:  # which came in between
                self.awake.set()

    def _keep_moving(self) -> None:
        if self.first:
            go_first()
        while True:
            self.awake.wait()
            if not self.watched and self.lock.acquire(blocking=False):
                try:
                    self._progress()
                finally:
                    self.lock.release()
            nap(IDLE_WIRE_SECONDS, PROGRESS_SECONDS) if self.first else time.sleep(PROGRESS_SECONDS)

    # preparation

    def ranks_of(self, comm: Comm) -> list[int]:
        """Return the ranks of a communicator as they count here."""
        return [int(rank) for rank in comm.mpi.Get_group().Translate_ranks(None, self.mpi.Get_group())]

    def sum_up(
        self, values: np.ndarray, result: np.ndarray, room: np.ndarray, members: Sequence[int], tag: int
    ) -> tuple[RingReduce, RingGather]:  # fmt: skip
        """Return the rings, one to begin at the end of the other, that leave in `result` the sum of all members' `values`, of which each
        adds up a part. `room`: as large, for what comes in; `tag` and the next one are theirs. Sums of float16 are rounded at
        each rank."""
        assert len(members) > 1
        ends = np.cumsum(splits.even(values.size, len(members)))[:-1]
        terms, sums = np.split(values.reshape(-1), ends), np.split(result.reshape(-1), ends)
        own = sums[list(members).index(self.rank)]
        return self.ring_reduce(terms, own, members, tag, room=room.reshape(-1)), self.ring_gather(sums, members, tag + 1)

    def direct(self, sends: Sequence[Block], receives: Sequence[Block], tag: int) -> Direct:
        """Return the transfer that sends blocks and receives others. Blocks between two ranks match in order and shape.

        Each rank begins with the next one: were all to begin with the first, its link would be full while theirs are empty.
        """
        coming = [(peer, part) for peer, block in receives for part in self._pieces(block)]
        sends = sorted(sends, key=lambda one: (one[0] < self.rank, one[0]))
        going = [(peer, part) for peer, block in sends for part in self._pieces(block)]
        requests = [self._receive(part, peer, tag) for peer, part in coming]
        requests += [self.mpi.Send_init(part, peer, tag) for peer, part in going]
        return Direct(requests, [peer for peer, _ in (*coming, *going)])

    def ring_gather(self, blocks: Sequence[np.ndarray], members: Sequence[int], tag: int, turn: int = 0) -> RingGather:
        """Return the ring that fills `blocks` (contiguous rows, one block per member, the own one filled in) on all members; `turn`: of
        its exchange among those under way."""
        count, place = len(members), list(members).index(self.rank)
        left, right = members[place - 1], members[(place + 1) % count]
        own = [self.mpi.Send_init(part, right, tag) for part in _segments(blocks[place])]
        receives, forwards = [], []
        for step in range(1, count):
            for part in _segments(blocks[place - step]):
                receives.append(self._receive(part, left, tag))
                forwards.append(self.mpi.Send_init(part, right, tag) if step < count - 1 else None)
        return self._in_turn(RingGather(own, receives, forwards, (left, right)), turn)

    def ring_reduce(
        self, terms: Sequence[np.ndarray], result: np.ndarray, members: Sequence[int], tag: int, turn: int = 0,
        room: np.ndarray | None = None,
    ) -> RingReduce:  # fmt: skip
        """Return the ring that leaves the sum over members of `terms` (one block of rows per member) of the own block in `result`; `turn`:
        of its exchange among those under way; `room`: where numbers that come in have theirs, if not in an array of their own."""
        count, place = len(members), list(members).index(self.rank)
        left, right = members[place - 1], members[(place + 1) % count]
        own = [self.mpi.Send_init(part, right, tag) for part in _segments(terms[place - 1])]
        receives, forwards, sums, taken = [], [], [], 0
        for step in range(2, count + 1):
            last = step == count
            term = terms[(place - step) % count]
            came = np.empty_like(term) if room is None else room[taken : taken + term.size].reshape(term.shape)
            taken += term.size
            for part, own_part, target in zip(_segments(came), _segments(term), _segments(result if last else came)):
                receives.append(self._receive(part, left, tag))
                forwards.append(None if last else self.mpi.Send_init(target, right, tag))
                sums.append((part, own_part, target))
        return self._in_turn(RingReduce(own, receives, forwards, (left, right), sums), turn)

    def _in_turn(self, ring: Ring, turn: int) -> Ring:
        ring.turn, ring.sending = turn, self.sending
        return ring

    def _receive(self, part: Any, peer: int, tag: int) -> Any:
        request = self.mpi.Recv_init(part, peer, tag)
        return Late(request, self.latencies[peer]) if self.latencies and self.latencies[peer] else request

    def _pieces(self, block: np.ndarray) -> list[Any]:
        """Cut [r, w] into runs of rows of at most PIECE_BYTES, as MPI buffers; columns of a wider array go by a vector type."""
        if not block.size:
            return []
        step = max(1, PIECE_BYTES // (block.shape[1] * block.itemsize))
        parts = [block[at : at + step] for at in range(0, len(block), step)]
        return [part if part.flags.c_contiguous else self._strided(part) for part in parts]

    def _strided(self, part: np.ndarray) -> Any:
        from mpi4py import MPI

        rows, width = part.shape
        stride, item = part.strides[0], part.itemsize
        shape = (rows, width * item, stride)
        if shape not in self.types:
            self.types[shape] = MPI.BYTE.Create_hvector(rows, width * item, stride).Commit()
        return [MPI.memory.fromaddress(part.ctypes.data, (rows - 1) * stride + width * item), 1, self.types[shape]]


@np.errstate(over="ignore", invalid="ignore")  # what is too large becomes infinite, which is seen behind the layers
def _add_short(came: np.ndarray, term: np.ndarray, out: np.ndarray) -> None:
    np.add(came, term, out=out)


def _segments(block: np.ndarray) -> list[np.ndarray]:
    flat = block.reshape(-1)
    step = RING_BYTES // block.itemsize
    return [flat[at : at + step] for at in range(0, flat.size, step)]
