"""When ranks of one host are worth computing beside each other. Pure.

They share its caches, its memory and its cores with whatever runs there, and wait for each other: the price knows none of that. One rank
with all cores has nobody to wait for, so the others must promise far more than the noise of two measurements.
A job that is long enough tries both (tuning/settle.py).
"""

from collections.abc import Iterable, Sequence

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.planning.candidates import Candidate

WORTH = 2.0  # times as long as priced that plans count whose ranks share a host


def share_hosts(candidate: Candidate, profile: ClusterProfile) -> bool:
    """Tell whether ranks of a host compute beside each other of which one could have all of its cores."""
    return are_crowded(candidate.plan.active, profile)


def are_crowded(ranks: Iterable[int], profile: ClusterProfile) -> bool:
    """Tell the same of `ranks`."""
    hosts = [profile.hosts[rank] for rank in ranks if profile.nodes[rank].alone is not None]
    return len(set(hosts)) < len(hosts)


def preference(profile: ClusterProfile, found: Sequence[Candidate]) -> tuple[float, int]:
    """Return what sorts candidates, each the first of those `found` together: the one to be chosen first, few ranks before many.

    It is without the hash, which is slow.
    """
    candidate = found[0]
    times = WORTH if share_hosts(candidate, profile) else 1.0
    return times * candidate.price.seconds, len(candidate.plan.active)


def keep_soonest(table: dict[int, float], keys: Iterable[int], seconds: float) -> None:
    """Note `seconds` for each of `keys` that has none yet or more.

    >>> found = {2: 0.5}
    >>> keep_soonest(found, [1, 2], 0.7)
    >>> found
    {2: 0.5, 1: 0.7}
    """
    for key in keys:
        table[key] = min(seconds, table.get(key, seconds))
