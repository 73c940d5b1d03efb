"""Why a plan leaves ranks out, in sentences. Pure: reads a decision, decides nothing."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.models.formats import F32
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.planning.sharing import WORTH
from hepti_mpi.program.plan import Plan
from hepti_mpi.wording import counted

SAME = 1.02  # times the predicted time that is no difference
MOST_NAMED = 6
BESIDE = "slow each other down by more than prices know"  # ranks of one host, which share its memory, its caches and maybe its cores


def reasons(decision: Decision) -> Iterator[str]:
    """Yield that more ranks are slower, where they are, and of ranks without a part what the best plan with them would have taken."""
    yield from more_ranks(decision)
    yield from left_out(decision)


def more_ranks(decision: Decision) -> Iterator[str]:
    """Yield one sentence with both times, where the chosen plan is for some of the ranks and no plan for more of them is worth it."""
    plan, seconds = decision.chosen.plan, decision.chosen.price.seconds
    more = {count: longer for count, longer in decision.by_ranks.items() if count > len(plan.active)}
    if not more:
        return
    count = min(more, key=lambda ranks: (more[ranks], ranks))
    longer = _compared(decision, more[count])
    few = f"{len(plan.active)} of {plan.ranks} ranks take"
    if not plan.divided:
        rank = plan.active[0]
        shared = plan.hosts.count(plan.hosts[rank]) > 1
        few = f"rank {rank} on {plan.hosts[rank]} alone{', with all cores of its host,' * shared} takes"
    what = "hardly sooner, if at all,"
    if longer > SAME * seconds:
        what = "slower"
    elif longer * SAME < seconds:
        what = "not sure to be sooner"
    best = f"the best plan on {counted(count, 'ranks')} {longer * 1e3:.1f} ms"
    yield f"more ranks are {what} here: {few} {seconds * 1e3:.1f} ms a batch, {best}"


def left_out(decision: Decision) -> Iterator[str]:
    """Yield why ranks have no part: one sentence for all of which the same is to be said."""
    plan, best = decision.chosen.plan, decision.chosen.price.seconds
    alike: dict[str, dict[int, float | None]] = {}
    for rank in range(plan.ranks):
        if rank not in plan.active:
            why, seconds = _why(decision, rank)
            alike.setdefault(why, {})[rank] = seconds
    for why, ranks in alike.items():
        times = sorted(seconds for seconds in ranks.values() if seconds is not None)
        more = [seconds for count, seconds in decision.by_ranks.items() if count > len(plan.active)]
        instead = " in the place of another" if times and more and times[-1] < min(more) else ""
        price = f" ({_span(times)} ms at best with it{instead}, {best * 1e3:.1f} without)" if times else ""
        verb = "is left out:" if len(ranks) == 1 else "are left out, each because"
        yield f"{named(list(ranks), plan.hosts)} {verb} {why}{price}"


def _why(decision: Decision, rank: int) -> tuple[str, float | None]:
    """Return why a rank has no part, and what the best plan with it would have taken, where there was one."""
    best = decision.chosen.price.seconds
    if rank not in decision.with_rank:
        return decision.ruled_out.get(rank, "no plan that was priced gives it a part"), None
    with_it = _compared(decision, decision.with_rank[rank])
    if with_it < best:
        limit = f"a plan with it is chosen below {best / WORTH * 1e3:.1f} ms only"
        return f"ranks of one host {BESIDE}, so {limit}", with_it
    if with_it >= SAME * best:
        return "exchanges with it and waiting for it take longer than it saves", with_it
    return "what it would compute is no more than exchanges with it take", with_it


def _compared(decision: Decision, seconds: float) -> float:
    """Return what is said that a plan takes which was not chosen: not less than the chosen one, which was priced more exactly, but where
    ranks share a host and a plan has to promise more (sharing.py)."""
    hosts = decision.chosen.plan.hosts
    return seconds if len(set(hosts)) < len(hosts) else max(seconds, decision.chosen.price.seconds)


def _span(times: Sequence[float]) -> str:
    ends = dict.fromkeys(f"{seconds * 1e3:.1f}" for seconds in (times[0], times[-1]))
    return " to ".join(ends)


def named(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Return which ranks are meant, in their order.

    >>> named([1], "ab"), named([1, 2, 3], ["vm"] * 4), named([0, 2], "abc")
    ('rank 1 on b', 'ranks 1 to 3 on vm', 'rank 0 on a and rank 2 on c')
    """
    runs: list[list[int]] = []  # of one host, one after the other
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1 and hosts[rank] == hosts[runs[-1][0]]:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = []
    for run in runs[:MOST_NAMED]:
        word = f"rank {run[0]}" if len(run) == 1 else f"ranks {run[0]} {'and' if len(run) == 2 else 'to'} {run[-1]}"
        words.append(f"{word} on {hosts[run[0]]}")
    more = sum(map(len, runs[MOST_NAMED:]))
    words += [f"{more} more"] * bool(more)
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def crowded(plan: Plan, profile: ClusterProfile) -> list[str]:
    """Return a sentence on each host on which several ranks compute: they slow each other down by what no price knows (sharing.py)."""
    cores, found = profile.cores, crowds(plan, profile.cores).items()
    said = (f"{host} has {counted(cores[host], 'cores')} for {counted(ranks, 'ranks')}" for host, ranks in found)
    return [f"{one}, which {BESIDE}: that may take longer than predicted" for one in said]


def crowds(plan: Plan, cores: Mapping[str, int]) -> dict[str, int]:
    """Return how many ranks compute on each of the hosts that are known by their `cores`, where there are several."""
    ranks = Counter(plan.hosts[rank] for rank in plan.active)
    return {host: ranks[host] for host in cores if ranks[host] > 1}


def unpacked(spec: ModelSpec, plans: Iterable[Plan], prepacked: bool) -> list[str]:
    """Return a sentence where products read weights as they lie in the store's file: what they take was measured of packed ones.
    `prepacked`: as of a Demand; weights in other formats are packed into memory."""
    mapped = any("mapped" in plan.weights_mode for plan in plans)
    if prepacked or not mapped or F32.name not in spec.product_formats:
        return []
    return ["float32 weights stay in their file and are not packed: products of few rows may take longer than predicted"]


def ruled_out(method: str, is_ours: bool, profile: ClusterProfile, demand: Demand, decision: Decision) -> dict[int, str]:
    """Return why no plan of a method could give some ranks a part."""
    limits = demand.limits or [node.memory_bytes for node in profile.nodes]
    taken = [need for candidate in (decision.chosen, *decision.others) for need in candidate.memory if need]
    found = {}
    for rank in range(decision.chosen.plan.ranks):
        if rank in decision.with_rank:
            continue
        if not is_ours:
            found[rank] = "another rank alone is sooner" if method == "single" else f"the rule of {method} gives it nothing"
        elif demand.shares is not None:
            found[rank] = "--shares gives it nothing"
        elif limits[rank] < min(taken):
            found[rank] = f"it has {int(limits[rank])} bytes of memory, and no rank takes less than {min(taken)} under these plans"
        else:
            found[rank] = f"its part of {counted(demand.rows, 'rows')} is none in every plan on several ranks that its memory holds"
    return found
