"""Why a plan leaves ranks out, in sentences. Pure: reads a decision, decides nothing."""

from collections.abc import Iterator

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.planning.request import Decision, Request
from hepti_mpi.wording import counted

SAME = 1.02  # times the predicted time that is no difference

def reasons(decision: Decision) -> Iterator[str]:
    """Yield that more ranks are slower, where they are, and per rank without a part what the best plan with it would have taken."""
    yield from more_ranks(decision)
    yield from left_out(decision)


def more_ranks(decision: Decision) -> Iterator[str]:
    """Yield one sentence with both times, where the chosen plan is for some of the ranks and no plan for more of them is worth it."""
    plan, seconds = decision.chosen.plan, decision.chosen.price.seconds
    more = {count: longer for count, longer in decision.by_ranks.items() if count > len(plan.active)}
    if not more:
        return
    count = min(more, key=lambda ranks: (more[ranks], ranks))
    few = f"{len(plan.active)} of {plan.ranks} ranks take"
    if not plan.divided:
        rank = plan.active[0]
        shared = plan.hosts.count(plan.hosts[rank]) > 1
        few = f"rank {rank} on {plan.hosts[rank]} alone{', with all cores of its host,' * shared} takes"
    what = "hardly sooner, if at all,"
    if more[count] > SAME * seconds:
        what = "slower"
    elif more[count] * SAME < seconds:
        what = "not sure to be sooner"
    best = f"the best plan on {counted(count, 'ranks')} {more[count] * 1e3:.1f} ms"
    yield f"more ranks are {what} here: {few} {seconds * 1e3:.1f} ms a batch, {best}"


def left_out(decision: Decision) -> Iterator[str]:
    """Yield, per rank without a part, why."""
    plan, best = decision.chosen.plan, decision.chosen.price.seconds
    for rank in range(plan.ranks):
        if rank in plan.active:
            continue
        who = f"rank {rank} on {plan.hosts[rank]} is left out"
        if rank not in decision.with_rank:
            yield f"{who}: {decision.ruled_out.get(rank, 'no plan that was priced gives it a part')}"
            continue
        with_it = decision.with_rank[rank]
        if with_it * SAME < best and plan.hosts.count(plan.hosts[rank]) > 1:
            price = f"{with_it * 1e3:.1f} ms with it, {best * 1e3:.1f} without"
            yield f"{who}: ranks of one host slow each other down by more than prices know, so {price}, is not enough"
            continue
        with_it = max(with_it, best)  # the chosen one was priced more exactly
        why = "what it would compute is no more than exchanges with it take"
        if with_it >= SAME * best:
            why = "exchanges with it and waiting for it take longer than it saves"
        yield f"{who}: {why} ({with_it * 1e3:.1f} ms with it, {best * 1e3:.1f} without)"


def ruled_out(method: str, is_ours: bool, profile: ClusterProfile, request: Request, decision: Decision) -> dict[int, str]:
    """Return why no plan of a method could give some ranks a part."""
    limits = request.limits or [node.memory_bytes for node in profile.nodes]
    taken = [need for candidate in (decision.chosen, *decision.others) for need in candidate.memory if need]
    found = {}
    for rank in range(decision.chosen.plan.ranks):
        if rank in decision.with_rank:
            continue
        if not is_ours:
            found[rank] = "another rank alone is sooner" if method == "single" else f"the rule of {method} gives it nothing"
        elif request.shares is not None:
            found[rank] = "--shares gives it nothing"
        elif limits[rank] < min(taken):
            found[rank] = f"it has {int(limits[rank])} bytes of memory, and no rank takes less than {min(taken)} under these plans"
        else:
            found[rank] = f"its part of {counted(request.rows, 'rows')} is none in every plan on several ranks that its memory holds"
    return found
