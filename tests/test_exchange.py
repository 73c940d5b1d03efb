"""Rings and progress without MPI: requests that are made up here deliver in order, late and at random, as MPI may."""

import threading
import time
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from hepti_mpi import splits
from hepti_mpi.comm import latency
from hepti_mpi.comm.exchange import PIECE_BYTES, Direct, Exchanges, RingGather, RingReduce
from hepti_mpi.comm.patience import Patience
from hepti_mpi.comm.sizes import RING_BYTES

WIDTH = 96  # so that blocks of some rows are several segments of a ring


class Network:
    """What has been sent and what waits for it, per (from, to, tag), matched in order as MPI does."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.sent, self.posted = defaultdict(list), defaultdict(list)
        self.moved = defaultdict(int)
        self.order = defaultdict(list)  # of tags
        self.freed = 0

    def deliver(self, key):
        while self.sent[key] and self.posted[key] and self.random.random() < 0.7:
            content, receive = self.sent[key].pop(0), self.posted[key].pop(0)
            target = receive.buffer.reshape(-1).view(np.uint8)
            assert target.size == content.size, "what is sent is as long as what is waited for"
            target[:] = content
            receive.active = False


class Request:
    """A persistent request; a send keeps what it read when it was started, and is done some tests later."""

    def __init__(self, network, key, buffer, sends):
        assert buffer.flags.c_contiguous
        self.network, self.key, self.buffer, self.sends, self.active = network, key, buffer, sends, False

    def Start(self):
        assert not self.active, "a request is started again only when it is done"
        self.active = True
        if self.sends:
            content = self.buffer.reshape(-1).view(np.uint8).copy()
            self.network.sent[self.key].append(content)
            self.network.moved[self.key[:2]] += content.size
            self.network.order[self.key[:2]].append(self.key[2])
        else:
            self.network.posted[self.key].append(self)

    def Test(self):
        self.network.deliver(self.key)
        if self.sends and self.active:
            self.active = self.network.random.random() < 0.3
        return not self.active

    def Free(self):
        assert not self.active
        self.network.freed += 1


class Communicator:
    def __init__(self, network, rank):
        self.network, self.rank = network, rank

    def Dup(self):
        return self

    def Send_init(self, buffer, peer, tag):
        return Request(self.network, (self.rank, peer, tag), buffer, True)

    def Recv_init(self, buffer, peer, tag):
        return Request(self.network, (peer, self.rank, tag), buffer, False)


def exchanges_of(network, rank, size, latencies=(), **options):
    comm = SimpleNamespace(
        rank=rank, size=size, mpi=Communicator(network, rank), patience=Patience(0.0, rank, size), latencies=latencies,
        turn=threading.RLock(),
    )  # fmt: skip
    return Exchanges(comm, **{"wait": "spin", "thread": False, **options})


def run(exchanges, transfers, random):
    """Start all and look at them in a random order until all are done."""
    done = {rank: exchanges[rank].start(transfer) for rank, transfer in transfers.items()}
    for _ in range(100_000):
        left = [rank for rank, event in done.items() if not event.is_set()]
        if not left:
            return
        exchanges[int(random.choice(left))].poll()
    raise AssertionError("it never ends")


CASES = [
    ((0, 1), (5, 7)),
    ((0, 1, 2), (90, 3, 4)),
    ((1, 2, 4), (0, 50, 9)),
    ((0, 1, 2, 3), (200, 0, 0, 1)),
    ((0, 2, 3, 5, 6), (1, 2, 3, 4, 50)),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("members, counts", CASES, ids=str)
def test_a_ring_brings_every_block_to_everyone(members, counts, kind, seed):
    network, random = Network(seed), np.random.default_rng(seed)
    exchanges = {rank: exchanges_of(network, rank, 7) for rank in members}
    arrays = {rank: np.zeros((sum(counts), WIDTH), kind) for rank in members}
    spans = [slice(start, start + count) for start, count in zip(splits.starts(counts), counts)]
    rings = {rank: exchanges[rank].ring_gather([arrays[rank][span] for span in spans], members, 3) for rank in members}
    for _ in range(3):  # prepared once, used again
        expected = random.standard_normal((sum(counts), WIDTH)).astype(kind)
        for rank, span in zip(members, spans):
            arrays[rank][:] = -1
            arrays[rank][span] = expected[span]
        run(exchanges, rings, random)
        assert all((arrays[rank] == expected).all() for rank in members)
    size = WIDTH * np.dtype(kind).itemsize
    for place, rank in enumerate(members):  # all but the block of whom it would come back to goes out once, to the right
        right = (place + 1) % len(members)
        assert network.moved[rank, members[right]] == 3 * size * (sum(counts) - counts[right])
    assert not any(network.sent.values()) and not any(network.posted.values())
    assert len(network.moved) <= len(members)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("apart", [False, True], ids=["in order", "in any order"])
def test_what_a_ring_passes_on_goes_before_what_a_later_one_sends(apart, seed):
    """Of a gather and the sum of the next tile; a rank that starts them in another order has sent some of the later one, and no ring waits
    for ever."""
    members, counts = (0, 1, 2, 3), (200, 0, 70, 9)
    network, random = Network(seed), np.random.default_rng(seed)
    exchanges = {rank: exchanges_of(network, rank, 4) for rank in members}
    spans = [slice(start, start + count) for start, count in zip(splits.starts(counts), counts)]
    gathered, results = ({rank: np.full((sum(counts), WIDTH), rank, np.float32) for rank in members} for _ in range(2))
    rings = {
        rank: [
            exchanges[rank].ring_gather([gathered[rank][span] for span in spans], members, 12, turn=3),
            exchanges[rank].ring_reduce([np.full((count, WIDTH), rank, np.float32) for count in counts],
                                        results[rank][spans[rank]], members, 16, turn=4),
        ] for rank in members
    }  # fmt: skip
    for _ in range(3):
        network.order.clear()
        starts = [(rank, place) for place in range(2) for rank in members]
        done = {}
        for rank, place in random.permutation(starts).tolist() if apart else starts:
            done[rank, place] = exchanges[rank].start(rings[rank][place])
            exchanges[int(random.choice(members))].poll()
        for _ in range(100_000):
            if all(event.is_set() for event in done.values()):
                break
            exchanges[int(random.choice(members))].poll()
        assert all(event.is_set() for event in done.values()), "it never ends"
        assert all((gathered[rank][span] == owner).all() for rank in members for owner, span in zip(members, spans))
        assert all((results[rank][spans[rank]] == sum(members)).all() for rank in members)
        assert apart or all(tags == sorted(tags) and len(set(tags)) == 2 for tags in network.order.values())
    assert not any(one.sending for one in exchanges.values())


class Ticking:
    """A clock that each look at it moves on."""

    def __init__(self, seconds):
        self.now, self.step = 100.0, seconds

    def perf_counter(self):
        self.now += self.step
        return self.now


@pytest.mark.parametrize("members, counts, hops", [((0, 1), (50, 70), 1), ((0, 1, 2), (90, 30, 40), 2), ((0, 1, 2, 3), (20, 0, 70, 1), 3)])
def test_what_comes_over_a_link_with_a_latency_is_seen_so_much_later(members, counts, hops, monkeypatch):
    """Pieces that follow each other are late together, not one after the other; a ring has the latency of every link on the way."""
    network, random, late, clock = Network(0), np.random.default_rng(0), 0.03, Ticking(1e-6)
    monkeypatch.setattr(latency, "time", clock)
    exchanges = {rank: exchanges_of(network, rank, 4, [late] * 4) for rank in members}
    arrays = {rank: np.zeros((sum(counts), WIDTH), np.float32) for rank in members}
    spans = [slice(start, start + count) for start, count in zip(splits.starts(counts), counts)]
    rings = {rank: exchanges[rank].ring_gather([arrays[rank][span] for span in spans], members, 3) for rank in members}
    took = []
    for _ in range(4):
        for place, (rank, span) in enumerate(zip(members, spans)):
            arrays[rank][:] = -1
            arrays[rank][span] = place
        begin = clock.now
        done = {rank: exchanges[rank].start(ring) for rank, ring in rings.items()}
        while not all(event.is_set() for event in done.values()):
            exchanges[int(random.choice(members))].poll()
        took.append(clock.now - begin)
        assert all((arrays[rank][span] == place).all() for rank in members for place, span in enumerate(spans))
    assert hops * late <= min(took) <= max(took) < (hops + 1) * late, took


@pytest.mark.parametrize("rank, order", [(0, [1, 2, 3]), (1, [2, 3, 0]), (3, [0, 1, 2])])
def test_each_rank_sends_to_the_next_one_first(rank, order, monkeypatch):
    """All would send to the first at once otherwise; blocks for one rank keep their order, by which they are matched."""
    sent, block = [], np.zeros((2, 8), np.float32)
    monkeypatch.setattr(Communicator, "Send_init", lambda self, buffer, peer, tag: sent.append((peer, len(buffer))))
    peers = [peer for peer in range(4) if peer != rank]
    exchanges_of(Network(0), rank, 4).direct([(peer, block[:rows]) for rows in (2, 1) for peer in peers], [], 1)
    assert sent == [(peer, rows) for peer in order for rows in (2, 1)]


def test_a_block_over_a_link_with_a_latency_is_seen_so_much_later(monkeypatch):
    network, late, clock = Network(0), 0.03, Ticking(1e-6)
    monkeypatch.setattr(latency, "time", clock)
    exchanges = {rank: exchanges_of(network, rank, 2, [late, 10 * late]) for rank in range(2)}
    mine, theirs = np.ones((4, 8), np.float32), [np.zeros((4, 8), np.float32) for _ in range(2)]
    transfers = {rank: exchanges[rank].direct([(1 - rank, mine)], [(1 - rank, theirs[rank])], 1) for rank in range(2)}
    begin, took = clock.now, {}
    done = {rank: exchanges[rank].start(transfer) for rank, transfer in transfers.items()}
    while len(took) < 2:
        for rank in done:
            exchanges[rank].poll()
            if done[rank].is_set():
                took.setdefault(rank, clock.now - begin)
    assert took[0] >= 10 * late > took[1] >= late and all((one == 1).all() for one in theirs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("members, counts", CASES, ids=str)
def test_a_ring_sums_every_block_for_its_owner(members, counts, seed):
    network, random = Network(seed), np.random.default_rng(seed)
    exchanges = {rank: exchanges_of(network, rank, 7) for rank in members}
    terms = {rank: np.zeros((sum(counts), WIDTH), np.float32) for rank in members}
    spans = [slice(start, start + count) for start, count in zip(splits.starts(counts), counts)]
    results = {rank: np.zeros((count, WIDTH), np.float32) for rank, count in zip(members, counts)}
    rings = {rank: exchanges[rank].ring_reduce([terms[rank][span] for span in spans], results[rank], members, 3) for rank in members}
    for _ in range(3):
        before = {rank: random.integers(-50, 50, terms[rank].shape).astype(np.float32) for rank in members}
        for rank in members:
            terms[rank][:] = before[rank]
        run(exchanges, rings, random)
        total = sum(before.values())
        for rank, span in zip(members, spans):
            assert (results[rank] == total[span]).all()
            assert (terms[rank] == before[rank]).all(), "what is summed stays as it was"
    for place, rank in enumerate(members):
        assert network.moved[rank, members[(place + 1) % len(members)]] == 3 * 4 * WIDTH * (sum(counts) - counts[place])
    for ring in rings.values():
        assert isinstance(ring, RingReduce)
        ring.free()
    assert network.freed and not any(network.sent.values())


def test_a_ring_passes_small_pieces_on():
    network = Network(0)
    block = np.zeros((1000, WIDTH), np.float32)
    ring = exchanges_of(network, 0, 3).ring_gather([block, block, block], (0, 1, 2), 1)
    sizes = [request.buffer.nbytes for request in (*ring.own, *ring.receives)]
    assert max(sizes) <= RING_BYTES and sum(sizes) == 3 * block.nbytes
    assert sum(forward is not None for forward in ring.forwards) == len(ring.receives) // 2
    requests = len([request for request in (*ring.own, *ring.receives, *ring.forwards) if request])
    ring.free()
    assert network.freed == requests and not ring.own and not ring.receives


@pytest.mark.parametrize("rows, width", [(0, 9), (1, 9), (1000, 96), (3, 40_000), (17, 15_360), (16, 960)])
def test_pieces_are_sent_at_once_and_cut_no_row(rows, width):
    block = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    pieces = exchanges_of(Network(0), 0, 2)._pieces(block)
    assert all(piece.base is not None and piece.shape[1] == width for piece in pieces), "parts of the block, not copies"
    assert all(piece.nbytes <= PIECE_BYTES or len(piece) == 1 for piece in pieces)
    assert sum(len(piece) for piece in pieces) == rows and (not rows or (np.concatenate(pieces) == block).all())


# progress


class Steps:
    """A transfer that is done after so many looks."""

    def __init__(self, looks):
        self.looks, self.started, self.threads = looks, 0, set()

    def start(self):
        self.started += 1
        self.threads.add(threading.current_thread().name)

    def progress(self):
        assert self.started, "nobody looks at what has not begun"
        self.looks -= 1
        self.threads.add(threading.current_thread().name)
        return self.looks <= 0


def alone(**options):
    return exchanges_of(Network(0), 0, 1, **options)


def until(ready):
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end, "it never happens"
        time.sleep(1e-3)


def test_what_is_done_at_once_is_not_waited_for():
    exchanges = alone()
    assert exchanges.start(Steps(1)).is_set() and not exchanges.pending


@pytest.mark.parametrize("wait", ["spin", "yield", "sleep"])
def test_who_waits_moves_all_on(wait):
    exchanges = alone(wait=wait)
    slow, quick = Steps(50), Steps(5)
    first, second = exchanges.start(slow), exchanges.start(quick)
    exchanges.wait([first, second])
    assert second.is_set() and not first.is_set() and 40 <= slow.looks <= 46  # until any is done
    exchanges.wait([first])
    assert first.is_set() and not exchanges.pending
    exchanges.wait([first, threading.Event()])  # one that is set already is not waited for


def test_what_came_while_MPI_looked_is_seen_without_a_pause():
    """MPI's Testsome says what was there before it moved on; whoever sleeps then sleeps beside what is there."""
    blocks = Direct([object()] * 4, [1] * 4)
    blocks.startall = lambda requests: None
    looks: list[list[int]] = [[], [0, 2], [], [3], [], [], [1]]
    blocks.testsome = lambda requests: looks.pop(0)
    blocks.start()
    assert not blocks.progress() and blocks.left == 1 and looks == [[1]]
    assert blocks.progress() and not looks


def test_a_message_that_comes_while_somebody_asks_what_is_missing_counts():
    """MPI tells of each that it is done once: whoever waits must not wait for one that the watching thread was told of."""

    class Came:
        def __init__(self, looks):
            self.looks, self.told = looks, False

        def Test(self):
            self.looks -= 1
            self.told |= self.looks < 0
            return self.told

    def testsome(requests):  # as MPI's: nothing of those that are told, None where all are
        left = [request for request in requests if not request.told]
        return [place for place, request in enumerate(requests) if request in left and request.Test()] if left else None

    blocks = Direct([Came(0), Came(2), Came(9)], [1, 2, 3])
    blocks.startall, blocks.testsome = lambda requests: None, testsome
    blocks.start()
    assert blocks.missing() == [2, 3] and not blocks.progress()
    for _ in range(9):
        if blocks.progress():
            break
    assert blocks.left == 0


def test_a_ring_takes_all_that_has_come():
    """A look of MPI brings some of what has come: a ring that waited for the thread's next one after each would carry little."""

    class Came:
        def __init__(self, looks):
            self.looks, self.started = looks, 0

        def Start(self):
            self.started += 1

        def Test(self):
            self.looks -= 1
            return self.looks < 0

    receives, forwards = [Came(1) for _ in range(5)] + [Came(9)], [Came(0) for _ in range(6)]
    ring = RingGather([], receives, forwards, (0, 1))
    ring.start()
    assert not ring.progress() and ring.place == 5 and [one.started for one in forwards] == [1] * 5 + [0]


def test_an_unknown_way_to_wait():
    with pytest.raises(KeyError):
        alone(wait="dream")


def test_a_thread_moves_on_what_nobody_waits_for():
    exchanges = alone(thread=True)
    transfer = Steps(9)
    done = exchanges.start(transfer)
    until(done.is_set)
    assert transfer.started == 1 and "progress" in transfer.threads
    until(lambda: not exchanges.pending)
    again = exchanges.start(Steps(3))  # it had gone to sleep
    until(again.is_set)


def test_aside_the_thread_begins():
    exchanges = alone(thread=True)
    with exchanges.lock:  # busy: the caller is not held up
        transfer = Steps(3)
        done = exchanges.start(transfer, aside=True)
        assert not done.is_set() and not transfer.started
    until(done.is_set)
    assert transfer.started == 1 and transfer.threads == {"progress"}


def test_aside_without_a_thread_begins_at_once():
    transfer = Steps(2)
    alone().start(transfer, aside=True)
    assert transfer.started == 1


@pytest.mark.parametrize("aside", [False, True])
def test_what_is_to_follow_begins_when_a_transfer_is_done(aside):
    """Whatever the main thread does meanwhile."""
    exchanges, first, second, done = alone(thread=True), Steps(9), Steps(3), threading.Event()
    before = []
    second.start = lambda start=second.start: (before.append(first.looks), start())
    exchanges.start(first, aside, then=[(second, done)])
    until(done.is_set)
    assert before == [0], "it begins when the other needs no further look"
    assert second.started == 1 and second.threads == {"progress"}
    until(lambda: not exchanges.pending)


def test_what_is_to_follow_what_is_done_at_once_begins_at_once():
    exchanges, second, done = alone(), Steps(2), threading.Event()
    assert exchanges.start(Steps(1), then=[(second, done)]).is_set()
    assert second.started == 1 and not done.is_set() and len(exchanges.pending) == 1
    exchanges.wait([done])
    assert not exchanges.pending


def test_what_was_put_aside_begins_before_what_comes_later():
    """Blocks between two ranks match in the order in which they are started."""
    exchanges = alone(thread=True)
    order = []

    class Named(Steps):
        def __init__(self, name):
            super().__init__(2)
            self.name = name

        def start(self):
            super().start()
            order.append(self.name)

    events = [exchanges.start(Named(number), aside=number % 3 > 0) for number in range(60)]
    for event in events:
        exchanges.wait([event])
    assert order == list(range(60))


@pytest.mark.parametrize("members", [(0, 1), (0, 2, 3), (4, 5, 6, 0)])
def test_who_has_not_come_is_named(members):
    """One rank starts, the others do not: it waits for the one to its left. When all have started nobody is missing."""
    network, random = Network(1), np.random.default_rng(1)
    exchanges = {rank: exchanges_of(network, rank, 7) for rank in members}
    arrays = {rank: np.zeros((3 * len(members), WIDTH), np.float32) for rank in members}
    spans = [slice(3 * place, 3 * place + 3) for place in range(len(members))]
    rings = {rank: exchanges[rank].ring_gather([arrays[rank][span] for span in spans], members, 3) for rank in members}
    first = members[0]
    exchanges[first].start(rings[first])
    exchanges[first].poll()
    assert exchanges[first].missing() == [members[-1]]
    done = [exchanges[rank].start(rings[rank]) for rank in members[1:]]
    while not all(event.is_set() for event in done):
        exchanges[members[random.integers(len(members))]].poll()
    for _ in range(100):
        exchanges[first].poll()
    assert exchanges[first].missing() == []
