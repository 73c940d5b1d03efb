"""What teams did, as numbers and text. Pure: reads what a job returned, prints nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.reasons import BESIDE, named
from hepti_mpi.planning.sharing import WORTH
from hepti_mpi.planning.teams import Arrangement
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.program.plan import kind_of
from hepti_mpi.reporting.records import ASKED, RUN_FORMAT, RUN_VERSION, STARTUP, board_facts, emulated, left_over, short, startup_line
from hepti_mpi.reporting.tables import duration, milliseconds, rate, table
from hepti_mpi.wording import counted

Each = TypeVar("Each")


def described(team: Team) -> str:
    """Say what a team does: all layers alone, divided, or in stages."""
    if len(team.stages) > 1:
        return "stages of " + " + ".join(str(len(stage.plan.layers)) for stage in team.stages) + " layers"
    return "alone" if team.alone else kind_of(team.stages[0].plan)


def teams_record(
    spec: ModelSpec, placement: Placement, work: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]], seconds: float,
    answering: float, startup: Mapping[str, float], output: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the JSON document of a run in teams, format hepti-run.

    `work`: of each team, what it has done (serving.teams.Work) and what was predicted; `facts`: of each rank; `seconds`: until the answers
    were put out; `answering`: those of them from the first batch to the last answer, of which a team is busy for a part.
    """
    seconds, requests, rows = max(seconds, 1e-9), sum(one["requests"] for one in work), sum(one["rows"] for one in work)
    predicted = [float(one["predicted_rows_per_second"]) for one in work]
    places = [placement.place(rank) or (None, None) for rank in range(len(facts))]
    ranks = [
        {"rank": rank, "team": places[rank][0], "stage": places[rank][1], "host": fact["host"], "threads": fact["threads"]}
        | board_facts(fact, seconds) | {key: fact[key] for key in ("weight_bytes", "peak_resident_bytes")}
        for rank, fact in enumerate(facts)
    ]  # fmt: skip
    return {
        "format": RUN_FORMAT, "format_version": RUN_VERSION, "model": spec.name, "family": spec.family,
        "embedding": spec.embedding, "strategy": "teams",
        "objective": "throughput", "requests": requests, "seconds": short(seconds), "answering_seconds": short(answering),
        "requests_per_second": short(requests / seconds), "rows_per_second": short(rows / seconds), "output": output,
        "predicted_rows_per_second": short(sum(predicted)),
        "startup_seconds": {key: short(startup.get(key, 0.0)) for key in STARTUP},
        "plan_hash": placement.hash,
        "teams": [
            {"members": list(team.members), "does": described(team), "stages": [_stage(stage) for stage in team.stages]}
            | {key: one[key] for key in ("batches", "requests", "rows")}
            | {"requests_per_second": short(one["requests"] / seconds), "rows_per_second": short(one["rows"] / seconds)}
            | {"busy_rows_per_second": short(one["rows"] / max(one["seconds"], 1e-9))}  # as is predicted: it always has something to do
            | {"predicted_rows_per_second": short(one["predicted_rows_per_second"])}
            | {"busy": short(min(one["seconds"] / max(answering, 1e-9), 1.0))}
            for team, one in zip(placement.teams, work)
        ],
        "ranks": ranks,
    }  # fmt: skip


def _stage(stage: Stage) -> dict[str, Any]:
    return {"members": list(stage.members), "first_layer": stage.plan.first, "layers": len(stage.plan.layers)}


def _by_ranks(teams: Iterable[Each], members: Callable[[Each], Sequence[int]]) -> list[list[Each]]:
    """Return the teams of each rank, or of those that are one team, in their order."""
    found: dict[tuple[int, ...], list[Each]] = {}
    for team in teams:
        found.setdefault(tuple(members(team)), []).append(team)
    return list(found.values())


def _at_once(does: str, batches: int) -> str:
    return f"{does}, {counted(batches, 'batches')} at once" if batches > 1 else does


def duties(placement: Placement, hosts: Sequence[str]) -> list[str]:
    """Return a sentence for each of the ranks, or those that are a team, that says what they do."""
    teams = _by_ranks(placement.teams, lambda team: team.members)
    return [f"{named(each[0].members, hosts)}: {_at_once(described(each[0]), len(each))}" for each in teams]


def teams_lines(record: dict[str, Any], hosts: Sequence[str], width: int | None = None) -> str:
    """Return the summary of a run in teams for people: what each did and how busy it was, then how much was answered how soon."""
    asked, rows = ASKED[record["embedding"]]
    lines = []
    for teams in _by_ranks(record["teams"], lambda team: team["members"]):
        predicted, done, batches, answered, speed = (
            sum(team[key] for team in teams)
            for key in ("predicted_rows_per_second", "busy_rows_per_second", "batches", "requests", "requests_per_second")
        )
        did = rate(done) + (f" / {rate(predicted)}" if predicted else "")
        busy = f"{100 * sum(team['busy'] for team in teams) / len(teams):.0f} %"
        who, does = named(teams[0]["members"], hosts), _at_once(teams[0]["does"], len(teams))
        lines.append((who, does, str(batches), str(answered), rate(speed), did, busy))
    members = [team["members"] for team in record["teams"]]
    resting = [item["rank"] for item in record["ranks"] if item["team"] is None]
    where = f"; answers in {record['output']}" if record["output"] else ""
    whole, part = duration(record["seconds"]), duration(record["answering_seconds"])
    took = whole if part == whole else f"{whole}, {part} from the first batch to the last answer"
    return "\n".join([
        table(("team", "does", "batches", asked, f"{asked}/s", f"{rows}/s when busy / predicted", "busy"), lines, width),
        *([f"at rest: {named(resting, hosts)}"] if resting else []),
        *left_over(record),
        *emulated(record),
        startup_line(record),
        f"{counted(record['requests'], asked)} by {counted(len({*map(str, members)}), 'teams')} in {took}: "
        f"{rate(record['requests_per_second'])} {asked} and {rate(record['rows_per_second'])} {rows} a second{where}",
    ])


def arrangement_document(found: Arrangement, rows: int) -> dict[str, Any]:
    """Return the JSON document of teams that were planned for batches of so many rows, format hepti-teams."""
    teams = [
        {"members": list(choice.team.members), "does": described(choice.team), "seconds": short(choice.seconds),
         "rows_per_second": short(rows / choice.seconds), "stages": [_stage(stage) for stage in choice.team.stages]}
        for choice in found.choices
    ]  # fmt: skip
    alone = {str(rank): short(seconds) for rank, seconds in found.alone.items()}
    head = {"format": "hepti-teams", "format_version": 1, "objective": "throughput", "rows": rows}
    return head | {"rows_per_second": short(rows * found.rate), "alone_seconds": alone, "teams": teams}


def arrangement_lines(found: Arrangement, rows: int, hosts: Sequence[str], width: int | None = None) -> str:
    """Return which teams were chosen, and from what."""
    lines = []
    for choices in _by_ranks(found.choices, lambda choice: choice.team.members):
        first, speed = choices[0], sum(rows / choice.seconds for choice in choices)
        does = _at_once(described(first.team), len(choices))
        lines.append((named(first.team.members, hosts), does, milliseconds(first.seconds), rate(speed)))
    alone = [f"rank {rank} {milliseconds(seconds)} ms" for rank, seconds in found.alone.items()]
    busy = {rank for choice in found.choices for rank in choice.team.members}
    fits = [f"one batch at a time takes {', '.join(alone)}"] if alone else ["the whole model fits on no rank alone: ranks hold it together"]
    if alone and (lacking := sorted(busy - found.alone.keys())):
        fits.append(f"the whole model does not fit on {named(lacking, hosts)}")
    resting = sorted(set(range(len(hosts))) - busy)
    cores = found.profile.cores
    crowded = max(found.others.values(), default=0.0) > found.rate
    limit = f"more of them would have to promise more than {rate(rows * WORTH * found.rate)} rows/s"
    sooner = f"ranks of one host {BESIDE}: {limit}" if crowded else "that is sooner"
    crowds = {host: sum(hosts[rank] == host for rank in busy) for host in cores}
    return "\n".join([
        table(("team", "does", f"ms for each batch of {rows} rows", "rows/s"), lines, width),
        "; ".join(fits),
        *([f"at rest: {named(resting, hosts)}, since {sooner}"] if resting else []),
        *(f"{host} has {counted(cores[host], 'cores')}: as many ranks would do there, instead of {crowd}"
          for host, crowd in crowds.items() if crowd > cores[host]),
        *found.notes,
        f"together, rows a second: {rate(rows * found.rate)}; considered: "
        + ", ".join(f"{name}: {rate(rows * value)}" for name, value in found.others.items()),
    ])
