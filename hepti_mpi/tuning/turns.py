"""Which methods are loaded together and answer in turns: all, or as many after another as memory holds. Knows bytes; not what they are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hepti_mpi.engine.machine import Machine

FILLED = 0.8  # of a rank's memory: settling tries other plans beside what is loaded

Holds = Mapping[tuple[object, ...], int]  # bytes by (rank, what they are); methods share what is the same
Method = tuple[int, str]  # the place of a store among those that are measured, and a name


def side_by_side(machine: "Machine", every: Mapping[Method, Holds], limits: Sequence[int]) -> list[list[Method]]:
    """Return which methods are loaded together: in their order, as many as fill no rank's memory, of which there are `limits` bytes, but
    at least one. Collective; rank 0 says what they hold."""
    found: list[list[Method]] = []
    held: dict[tuple[object, ...], int] = {}
    for method, own in every.items():
        both = {what: max(held.get(what, 0), own.get(what, 0)) for what in (*held, *own)}
        totals = [sum(size for what, size in both.items() if what[0] == rank) for rank in range(len(limits))]
        if found and all(total <= FILLED * limit for total, limit in zip(totals, limits)):
            found[-1].append(method)
        else:
            found.append([method])
            both = dict(own)
        held = both
    return [[(number, name) for number, name in group] for group in machine.world.from_root(found)]


def told(groups: Sequence[Sequence[Method]]) -> list[list[str]]:
    """Return the names in each group, each once."""
    return [list(dict.fromkeys(name for _, name in group)) for group in groups]
