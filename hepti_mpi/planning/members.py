"""What of prices is the same for all plans on the same ranks: how fast these are, how they are linked, who shares a host. Pure."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hepti_mpi.planning.traffic import Links, Shares


class Linked(Protocol):
    """What a pricer knows of all ranks' links and hosts, as it says."""

    same_host: np.ndarray
    seconds_per_byte: np.ndarray
    latency: np.ndarray
    link: np.ndarray
    near: np.ndarray
    head_start: np.ndarray

    def places(self, active: Sequence[int] | np.ndarray) -> np.ndarray: ...

    def crowding(self, active: tuple[int, ...]) -> np.ndarray: ...


def some_of(values: Any, numbers: Sequence[int]) -> Any:
    """Return of arrays [..., plans], of one or in a record, those of some plans; an axis of 1 is of all."""
    if isinstance(values, np.ndarray):
        return values if values.shape[-1] == 1 else values.take(numbers, axis=-1)
    if isinstance(values, tuple):
        return type(values)(*(some_of(one, numbers) for one in values))
    if isinstance(values, (Links, Shares)):
        return type(values)(*[some_of(getattr(values, name), numbers) for name in values.__dataclass_fields__])
    return values


class Members:
    """What is fixed for a set of active ranks; arrays [ranks, 1]."""

    def __init__(self, pricer: Linked, active: tuple[int, ...]) -> None:
        ranks = np.array(active)
        self.ranks, self.places = ranks[:, None], pricer.places(ranks)[:, None]
        self.crowding = pricer.crowding(active)[ranks, None]
        grid, all_ = np.ix_(ranks, ranks), np.array(sorted({0, *active}))
        outer = np.ix_(all_, all_)
        mates, far = pricer.same_host[grid], pricer.link[ranks]
        slowest, latency = (np.array([[links[at].max()] for at in (grid, outer)]) for links in (pricer.seconds_per_byte, pricer.latency))
        hop = np.full(len(ranks), slowest[0]) if mates.sum() > len(ranks) else np.maximum(far, np.roll(far, -1))
        ahead = pricer.head_start[ranks]
        hop_ahead = np.minimum(ahead, np.roll(ahead, -1)) * hop
        self.links = Links(
            far[:, None], pricer.near[ranks, None], hop[:, None], (ahead * far)[:, None], hop_ahead[:, None], mates[..., None],
            np.array([not active[0]]), pricer.seconds_per_byte[0, ranks].max()[None], latency, slowest,
        )  # fmt: skip
