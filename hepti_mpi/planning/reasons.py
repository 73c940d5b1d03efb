"""Why a plan leaves ranks out, in sentences. Pure: reads a decision, decides nothing."""

from collections.abc import Iterator

from hepti_mpi.planning.planner import Decision


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
    """Yield, per rank without a part, why: what the best plan with it would have taken."""
    plan = decision.chosen.plan
    for rank in range(plan.ranks):
        if rank in plan.active:
            continue
        if rank in decision.with_rank:
            ratio = max(1.0, decision.with_rank[rank] / decision.chosen.price.seconds)  # which was priced more exactly
            yield f"rank {rank} on {plan.hosts[rank]} is left out: the best plan with it takes {ratio:.2f} x as long"
        else:
            yield f"rank {rank} on {plan.hosts[rank]} is left out: no plan with it was allowed or fits"
