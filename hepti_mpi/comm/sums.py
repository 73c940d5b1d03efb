"""Whole sums of ranks' terms by messages: where waiting ranks leave their cores, and of float16, of which MPI has no sums.

Knows messages and numbers; does not know what the values mean.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from hepti_mpi import splits
from hepti_mpi.comm.pauses import BETWEEN, nap
from hepti_mpi.comm.sizes import PART_BYTES

TERMS = 1  # the tag of terms
EAGER_SECONDS = 0.02  # the wait for few terms, in which no look is put off: a token waits; whoever waits longer waits for who is lost


class Ranks(Protocol):
    """What sums are made by: a Comm."""

    rank: int
    size: int
    mpi: Any
    turn: Any
    polite: bool

    def done(self, requests: Sequence[Any], pause: Callable[[float], object]) -> None: ...

    def end(self, requests: Sequence[Any]) -> None: ...


def directly(comm: Ranks, values: np.ndarray, result: np.ndarray) -> None:
    """Send the own terms to each other rank: MPI's sum is several messages deep, and each is waited for by looking again after a nap.

    All add in the order of ranks, so that no two ranks' sums differ.
    """
    terms = [values if rank == comm.rank else np.empty_like(values) for rank in range(comm.size)]
    _swap(comm, [values] * comm.size, terms, EAGER_SECONDS)
    _add_up(terms, result)


def in_parts(comm: Ranks, values: np.ndarray, result: np.ndarray) -> None:
    """Let each rank sum a part of the terms and send it to each other one. MPI's sums that do not block put two or three times as much
    on the busiest link of three ranks. The sum travels as terms do, also to whom it is: no two ranks' sums differ.

    Source: Rabenseifner, "Optimization of Collective Reduction Operations", 2004.
    """
    ends = np.cumsum(splits.even(values.size, comm.size))[:-1]
    own, sums = np.split(values.reshape(-1), ends), np.split(result.reshape(-1), ends)
    terms = [own[comm.rank] if rank == comm.rank else np.empty_like(own[comm.rank]) for rank in range(comm.size)]
    _swap(comm, own, terms)
    _add_up(terms, sums[comm.rank])
    _swap(comm, [sums[comm.rank]] * comm.size, sums)


def _swap(comm: Ranks, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray], eager: float = 0.0) -> None:
    """Send one of some arrays to each other rank, and receive one from each; for `eager` seconds it looks at once at what comes.

    A long message asks first whether it may come, and both question and answer stand in line behind what the links carry already: four
    ranks that each send three messages of 100 KiB and more take 1.4 to 1.7 times as long as their links need, in parts at most 1.3.
    """
    peers = [(comm.rank + step) % comm.size for step in range(1, comm.size)]
    with comm.turn:
        waiting = [comm.mpi.Irecv(part, peer, TERMS) for peer in peers for part in cut(incoming[peer].reshape(-1))]
        for parts in zip_longest(*(cut(outgoing[peer].reshape(-1)) for peer in peers)):
            waiting += [comm.mpi.Isend(part, peer, TERMS) for part, peer in zip(parts, peers) if part is not None]
    if comm.polite:
        comm.done(waiting, lambda waited: nap(waited, 0 if waited < eager else BETWEEN))
    else:
        comm.end(waiting)


def _add_up(terms: Sequence[np.ndarray], result: np.ndarray) -> None:
    whole = result if result.dtype == np.float32 else np.empty(result.shape, np.float32)
    np.copyto(whole, terms[0])
    for term in terms[1:]:
        whole += term
    if whole is not result:
        with np.errstate(over="ignore"):  # what is too large for it becomes infinite, which is seen behind the layers
            np.copyto(result, whole, casting="same_kind")


def cut(values: np.ndarray) -> list[np.ndarray]:
    """Cut values into runs that are sent without the receiver's consent."""
    step = PART_BYTES // values.itemsize
    return [values[at : at + step] for at in range(0, len(values), step)]
