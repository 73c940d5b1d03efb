"""A program's clocks: when each rank has done which step, for many plans at once. Pure: knows seconds of steps and exchanges, no model.

With MPI's own collectives a Sync starts when the last rank arrives and all leave together. With our own, each rank's blocks leave when they
are made, queue on its link behind what it sent before, and a Compute waits for what it reads only. Emulated boards send the blocks of MPI's
collectives so, but wait for each.
"""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np

from hepti_mpi.comm.sizes import RING_BYTES
from hepti_mpi.planning.rings import around
from hepti_mpi.planning.traffic import Direct, Links, Round, Traffic, givers


class Computing(NamedTuple):
    """What a Compute takes each rank, [ranks, plans]; `idle`: inf for who has no part in it and waits for nothing, else 0; None where all
    have one."""

    seconds: np.ndarray
    idle: np.ndarray | None


class Together(NamedTuple):
    """One of MPI's collectives, for which all ranks wait: seconds and bytes, [plans]. `rested`: it goes the sooner after a rest."""

    seconds: np.ndarray
    moved: np.ndarray
    rested: bool


class Walk:
    """Clocks [ranks, plans] that steps advance; `links`: of the ranks; `exchange`: seconds that each takes beside what its bytes do.

    All arrays are as large and each in one piece: with few numbers NumPy takes three times as long for a view, or an axis of 1.
    """

    def __init__(self, size: tuple[int, int], links: Links, exchange: float, in_turn: bool) -> None:
        self.links, self.exchange, self.in_turn = links, exchange, in_turn
        zeros = np.zeros(size)
        self.ahead = zeros + links.ahead
        self.hops = zeros + links.hop, zeros + (links.latency[0] + RING_BYTES * links.hop), zeros + links.hop_ahead
        self.left, self.right = np.arange(-1, size[0] - 1), np.arange(1, size[0] + 1) % size[0]
        self.zeros, self.clock = zeros, zeros
        self.handled: list[np.ndarray] = []  # seconds that clocks went on while ranks neither computed nor waited
        self.blocked: list[np.ndarray] = []  # those of MPI's collectives among them
        self.up, self.down = zeros, zeros  # when each rank's link would be at rest again
        self.ready: dict[str, np.ndarray] = {}  # when a value is there
        self.coming: dict[str, np.ndarray] = {}  # the same of what exchanges bring: what a rank makes is there when it looks for it
        self.ending: dict[str, np.ndarray] = {}  # seconds that a rank takes before it reads such a value first

    def fork(self) -> "Walk":
        """Return a walk that goes on from here by itself."""
        other = copy(self)
        other.ready, other.coming, other.ending = dict(self.ready), dict(self.coming), dict(self.ending)
        other.handled, other.blocked = list(self.handled), list(self.blocked)
        return other

    def computed(self, step: Computing, reads: Sequence[str], writes: Sequence[str]) -> None:
        """Compute, once what is read has come."""
        clock, before = self.clock, None
        for name in reads:
            when = self.coming.get(name)
            if when is not None and when is not before:  # values may come together
                before = when
                clock = np.maximum(clock, when if step.idle is None else when - step.idle)
            if name in self.ending:  # it adds what came when that is there
                self.handled.append(ending := self.ending.pop(name))
                clock = clock + ending
        self.clock = clock + step.seconds
        _note(self.ready, writes, self.clock)

    def sent_by_messages(self, step: Traffic, reads: Sequence[str], writes: Sequence[str], last: bool) -> None:
        """Send each rank's blocks when they are made; the values are there when the last block for the rank has come in. `last`: they are
        the answer, for which all wait."""
        begin = self.clock if self.in_turn else None
        before = None
        for name in reads:
            when = self.ready.get(name)
            if when is not None and when is not before:  # values may be made together
                begin, before = when if begin is None else np.maximum(begin, when), when
        begin = step.starting if begin is None else begin + step.starting  # the rank computes what it can meanwhile
        if step.copying is not None:
            self.clock = self.clock + step.copying
            self.handled.append(step.copying)
        leave = np.maximum(begin, self.up)  # a link that rested is ahead of its rate: what it then sends is there so much sooner
        ways = [self._round(step.round, begin, leave)] if step.round else []
        ways += [self._directly(step.direct, begin, leave)] if step.direct else []
        self.up, self.down, done = ways[0] if len(ways) == 1 else (np.where(step.ring, one, other) for one, other in zip(*ways))
        if step.ending is not None and (self.in_turn or last):
            done = done + step.ending
        elif step.ending is not None:
            earlier = self.ending.get(writes[0])  # tiles may be one value
            self.ending[writes[0]] = step.ending if earlier is None else earlier + step.ending
        _note(self.ready, writes, done)
        for name in writes:
            self.coming[name] = self.ready[name]
        if self.in_turn or last:
            self.clock = np.maximum(self.clock, done)

    def _round(self, way: Round, begin: np.ndarray, leave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return when each link has sent, and received, and when each rank has what it takes, round a ring: what came to the right
        neighbour from others before is ahead on its link."""
        leave = np.maximum(leave, self.down.take(self.right, axis=0))
        if way.first is None:
            up = self.zeros + (leave + way.out).max(axis=0)
            there = np.maximum(up - self.ahead, begin.max(axis=0))
        else:
            up, there = around(begin, leave, way.first, self.hops)
        done = np.maximum(there.take(self.left, axis=0), begin) + self.exchange
        return up, up.take(self.left, axis=0), done

    def _directly(self, way: Direct, begin: np.ndarray, leave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the same of blocks that go the direct way."""
        up = leave + way.out
        if way.blocks is None:
            last = up.max(axis=0, where=way.out > 0, initial=0)
            first = begin.min(axis=0, where=way.out > 0, initial=np.inf)
            down = self._in_one_go(first, way)
        else:
            out, loads = way.blocks
            who = givers(*out.shape[:2])
            sent, begun = leave.take(who, axis=0), begin.take(who, axis=0)
            if self.links.shared:  # what comes for a rank keeps the link of all of its host busy
                first = np.minimum.reduce(begun if way.never is None else begun + way.never, 0)
                down = self._in_one_go(np.where(self.links.mates, first, np.inf).min(axis=1), way)
            if way.never is not None:
                begun -= way.never
            sent += out
            last = np.maximum.reduce(np.maximum(sent, begun, out=sent), 0)
            if not self.links.shared:
                down = np.maximum(_one_by_one(begun, loads), self.down + way.into)
        done = np.maximum(np.maximum(down - self.ahead, last) + (self.exchange if way.late is None else way.late), begin)
        return up, down, done

    def _in_one_go(self, first: np.ndarray, way: Direct) -> np.ndarray:
        """Return when each link has received all, were it there when the `first` block begins."""
        if way.until is not None:
            first = np.minimum(first, way.until)
        return np.maximum(first, self.down) + way.into

    def exchanged_together(self, step: Together) -> None:
        """All ranks wait for the last one and leave together."""
        start, seconds = self.clock.max(axis=0), step.seconds
        if step.rested:  # the first blocks leave on links that have rested
            rest = np.minimum(self.links.ahead.min(axis=0), start - self.up.max(axis=0))
            seconds = np.maximum(seconds - rest, 0)
        seconds = seconds + self.exchange * (step.moved > 0)
        self.clock = self.zeros + (start + seconds)
        self.handled.append(self.zeros + seconds)
        self.blocked.append(seconds)
        self.up = np.where(step.moved > 0, self.clock, self.up)


def _one_by_one(begun: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """Return when links that were at rest have received blocks that are `begun` then, [givers, to, plans], -inf where there is none: what
    is left idle before a late one is lost to it. `loads`: seconds for which each keeps the link busy or, of few, any of `groups` does.

    It is the latest end of what comes together, without a rest, from the begin of the first one on.

    >>> float(_one_by_one(np.array([[[0.0]], [[9.0]], [[9.0]]]), np.array([[[4.0]], [[1.0]], [[2.0]]]))[0, 0])
    12.0
    """
    if len(loads) == len(begun):
        later = np.add.reduce((begun >= begun[:, None]) * loads, 1)  # with each, those that begin no sooner
        later += begun
        return np.asarray(np.maximum.reduce(later, 0))
    first = np.empty(loads.shape)
    for giver, one in enumerate(begun):
        own = (1 << giver) - 1
        first[own] = one
        np.minimum(first[:own], one, out=first[own + 1 : 2 * own + 1])
    first += loads
    return np.asarray(np.maximum.reduce(first, 0))


def _note(times: dict[str, np.ndarray], names: Sequence[str], when: np.ndarray) -> None:
    """Note when values are there, which may come together; of several tiles that are one value, when the last is."""
    before, latest = None, when
    for name in names:
        known = times.get(name)
        if known is not None and known is not before:
            before, latest = known, np.maximum(known, when)
        times[name] = when if known is None else latest
