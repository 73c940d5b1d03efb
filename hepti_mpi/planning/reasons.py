"""Why a plan leaves ranks out, in sentences. Pure: reads a decision, decides nothing."""

from collections.abc import Iterator

from hepti_mpi.planning.planner import Decision

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
    if len(plan.active) == 1:
        rank = plan.active[0]
        shared = plan.hosts.count(plan.hosts[rank]) > 1
        few = f"rank {rank} on {plan.hosts[rank]} alone{', with all cores of its host,' * shared} takes"
    what = "slower" if more[count] > seconds else "hardly sooner, if at all,"
    yield f"more ranks are {what} here: {few} {seconds * 1e3:.1f} ms a batch, the best plan on {count} ranks {more[count] * 1e3:.1f} ms"


def left_out(decision: Decision) -> Iterator[str]:
    """Yield, per rank without a part, why."""
    plan, best = decision.chosen.plan, decision.chosen.price.seconds
    for rank in range(plan.ranks):
        if rank in plan.active:
            continue
        who = f"rank {rank} on {plan.hosts[rank]} is left out"
        if rank not in decision.with_rank:
            yield f"{who}: no plan with it was allowed, or its memory holds none"
            continue
        with_it = max(decision.with_rank[rank], best)  # the chosen one was priced more exactly
        why = "what it would compute is no more than exchanges with it take"
        if with_it >= SAME * best:
            why = "exchanges with it and waiting for it take longer than it saves"
        yield f"{who}: {why} ({with_it * 1e3:.1f} ms with it, {best * 1e3:.1f} without)"
