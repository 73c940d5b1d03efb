"""What generating text took, as a document and as lines. Pure: knows finished answers by their times; shows nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning.staging import Staged
from hepti_mpi.planning.texts import Chosen
from hepti_mpi.planning.writing import Writers
from hepti_mpi.program.placement import Placement
from hepti_mpi.program.plan import WIRES, in_words, kind_of
from hepti_mpi.quantiles import median
from hepti_mpi.reporting.records import RUN_FORMAT, RUN_VERSION, board_facts, emulated, left_over
from hepti_mpi.reporting.tables import duration, milliseconds, rate, size, table
from hepti_mpi.reporting.teams import described
from hepti_mpi.wording import counted


class Timed(Protocol):
    """An answer: its tokens, of which a job before this one `made` the first, why it ended ("length": at the tokens that it may have), and
    by the clock when it was asked for, began and ended."""

    prompt: list[int]
    tokens: list[int]
    finish_reason: str | None
    submitted: float
    first_token: float
    ended: float
    made: int


def generation_record(spec: ModelSpec, answers: Sequence[Timed], seconds: float) -> dict[str, Any]:
    """Return the JSON document of a run that generated text, format hepti-run.

    Tokens that a job before this one made do not count. `ttft_seconds`: from asking to the first token; `tokens_per_second`: of one answer
    behind its first token; both medians over answers; `all_tokens_per_second`: of all answers together; `cut_off`: answers that would have
    gone on.
    """
    document: dict[str, Any] = {"format": RUN_FORMAT, "format_version": RUN_VERSION, "kind": "generation", "model": spec.name}
    document |= {"family": spec.family, "requests": len(answers), "seconds": _short(seconds)}
    document["cut_off"] = sum(one.finish_reason == "length" for one in answers)
    answers = [one for one in answers if len(one.tokens) > one.made]
    grown = [one for one in answers if len(one.tokens) - one.made > 1 and one.ended > one.first_token]
    rates = [(len(one.tokens) - one.made - 1) / (one.ended - one.first_token) for one in grown]
    waits = [one.first_token - one.submitted for one in answers]
    made = sum(len(one.tokens) - one.made for one in answers)
    document |= {
        "prompt_tokens": sum(len(one.prompt) for one in answers), "completion_tokens": made,
        "ttft_seconds": _median(waits), "tokens_per_second": _median(rates),
        "prefill_tokens_per_second": _median([(len(one.prompt) + one.made) / wait for one, wait in zip(answers, waits) if wait > 0]),
        "all_tokens_per_second": _short(made / seconds) if made and seconds > 0 else None,
        "startup_seconds": {},
    }  # fmt: skip
    return document


def ranks_record(
    placement: Placement, startup: Mapping[str, float], facts: Sequence[Mapping[str, Any]], teams: Sequence[Mapping[str, Any]],
    seconds: float, wire_error: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Return what that document says of the ranks: what starting took, and of each rank and each of `teams` what it did, in `seconds`;
    `wire_error`: by how much the wire's type changes a probability."""
    document: dict[str, Any] = {"startup_seconds": {key: _short(value) for key, value in startup.items()}}
    plan = placement.together
    if plan is not None:
        predicted = plan.predicted_seconds
        document |= {"strategy": plan.strategy, "plan_hash": plan.hash, "wire": plan.wire, "wire_error": _short(wire_error)}
        document["predicted_token_seconds"] = None if predicted is None else _short(predicted)
    elif placement.is_one:
        (team,) = placement.teams
        stages = [{"members": list(one.members), "first_layer": one.plan.first, "layers": len(one.plan.layers)} for one in team.stages]
        document |= {"strategy": "stages", "plan_hash": placement.hash, "stages": stages}
        predicted = team.stages[0].plan.predicted_seconds
        document["predicted_token_seconds"] = None if predicted is None else _short(predicted)
    else:
        document |= {"strategy": "teams", "plan_hash": placement.hash}
        document["teams"] = [{key: _plain(value) for key, value in team.items()} for team in teams]
        document["predicted_all_tokens_per_second"] = _short(sum(team["predicted_tokens_per_second"] for team in teams))
    document["ranks"] = [
        {"rank": rank} | {key: _plain(value) for key, value in fact.items() if key != "late_seconds"} | board_facts(fact, seconds)
        for rank, fact in enumerate(facts)
    ]
    return document


def writers_lines(found: Writers, hosts: Sequence[str], width: int | None = None) -> str:
    """Return which teams write, and why."""
    lines = []
    for one in found.every:
        who = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in one.team.members)
        lines.append((who, described(one.team), rate(1 / one.steps[0]), rate(one.rate)))
    busy = {rank for one in found.every for rank in one.team.members}
    resting = [f"rank {rank} on {host}" for rank, host in enumerate(hosts) if rank not in busy]
    several = counted(found.every[0].slots, "texts")
    return "\n".join([
        table(("team", "does", "tokens/s of one text", f"tokens/s of {several} with prompts"), lines, width),
        *([f"at rest: {', '.join(resting)}"] if resting else []),
        why_teams(found),
    ])


def why_teams(found: Writers) -> str:
    """Return how long teams and all ranks together take, in one sentence."""
    texts, together = counted(found.texts, "texts"), duration(found.together.seconds(found.texts))
    teams = f"{duration(found.seconds)} by teams, each text by one of them"
    return f"{texts} of {counted(found.every[0].answer, 'tokens')}: {teams}; {together} by all ranks together"


def ways_lines(chosen: Chosen, first: float | None, width: int | None = None) -> str:
    """Return the ways in which ranks may write together, soonest token first. `first`: seconds until the best division of layers has taken
    in a prompt."""
    rows, ways = [], _ways(chosen, first)
    names = [way["way"] for way in ways]
    for way in ways:
        prompt = "" if way["first_token_seconds"] is None else milliseconds(way["first_token_seconds"])
        why = "chosen" if way["chosen"] else f"{way['token_seconds'] / chosen.seconds:.2f} x"
        alike = names.count(way["way"]) > 1  # on other boards
        name = way["way"] + f" on {'ranks' if way['ranks'] > 1 else 'rank'} {', '.join(map(str, way['members']))}" * alike
        rows.append((name, milliseconds(way["token_seconds"]), why, prompt, str(way["ranks"]), size(max(way["memory_bytes"]))))
    notes = chosen.decision.notes if chosen.decision is not None and not chosen.in_stages else ()
    return "\n".join([table(("way", "ms of a token", "", "first token ms", "ranks", "most memory"), rows, width), *notes, *chosen.notes])


def ways_document(chosen: Chosen, first: float | None) -> dict[str, Any]:
    """Return the same as a JSON document, format hepti-text-plan, with what was chosen."""
    placement = chosen.placement
    plan = placement.to_json() if placement.together is None else placement.together.to_json()
    return {"format": "hepti-text-plan", "format_version": 1, "plan": plan, "token_seconds": _short(chosen.seconds),
            "first_token_seconds": _short(chosen.prompt_seconds), "ways": _ways(chosen, first)}  # fmt: skip


def _ways(chosen: Chosen, first: float | None) -> list[dict[str, Any]]:
    """Return what each way takes; of divisions of layers only the best has a first token. Of plans of one kind on the same ranks there is
    the best alone."""
    found, staged = list[dict[str, Any]](), chosen.staged
    if staged is not None:
        found.append({"way": "stages of " + " + ".join(map(str, staged.counts)) + " layers", "token_seconds": _short(staged.seconds),
                      "first_token_seconds": _short(staged.prompt_seconds), "ranks": len(staged.ranks), "members": list(staged.ranks),
                      "memory_bytes": list(staged.memory), "chosen": chosen.in_stages})  # fmt: skip
    decision = chosen.decision
    for one in (decision.chosen, *decision.others) if decision is not None else ():
        best = decision is not None and one is decision.chosen
        found.append({"way": kind_of(one.plan), "token_seconds": _short(one.price.seconds),
                      "first_token_seconds": _short(first) if best and first is not None else None, "ranks": len(one.plan.active),
                      "members": list(one.plan.active), "memory_bytes": list(one.memory),
                      "chosen": best and not chosen.in_stages})  # fmt: skip
    kinds: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    for way in sorted(found, key=lambda way: (not way["chosen"], way["first_token_seconds"] is None, way["token_seconds"])):
        kinds.setdefault((way["way"], tuple(way["members"])), way)
    return sorted(kinds.values(), key=lambda way: way["token_seconds"])


def stages_lines(found: Staged, hosts: Sequence[str], width: int | None = None) -> str:
    """Return which ranks have which layers of texts."""
    lines, first = [], 0
    for place, (rank, count, seconds) in enumerate(zip(found.ranks, found.counts, found.stage_seconds)):
        layers = f"{first} - {first + count - 1}" if count > 1 else str(first)
        words = ", words" if place == len(found.ranks) - 1 else ""
        lines.append((f"rank {rank} on {hosts[rank]}", layers + words, milliseconds(seconds), size(found.memory[rank])))
        first += count
    resting = [f"rank {rank} on {host}" for rank, host in enumerate(hosts) if rank not in found.ranks]
    return "\n".join([
        table(("stage", "layers", "ms of a token", "memory"), lines, width),
        *([f"at rest: {', '.join(resting)}"] if resting else []),
        f"a token passes through all stages in {milliseconds(found.seconds)} ms, {milliseconds(found.hop_seconds)} of them on its way",
    ])


def generation_lines(document: Mapping[str, Any]) -> str:
    """Return what people read of it."""
    made = counted(document["completion_tokens"], "tokens")
    head, remarks = f"{counted(document['requests'], 'answers')}, {made} in {duration(document['seconds'])}", [*left_over(document)]
    remarks += emulated(document)
    written = f"; answers in {document['output']}" if document.get("output") else ""
    cut = [_cut_off(document)] if document["cut_off"] else []
    if document["tokens_per_second"] is None or document["ttft_seconds"] is None:
        return "\n".join([*remarks, head + written, *cut])
    waits, speed = duration(document["ttft_seconds"]), rate(document["tokens_per_second"])
    each = f"the first token after {waits}, then {speed} a second"
    if document["requests"] > 1:
        each = f"each has its first token after {waits}, its turn included, then {speed} a second, in the median"
    teams = document.get("teams", ())
    who = counted(len(teams), "teams") if teams else document.get("strategy")
    lines = [*remarks, f"{head} by {who}: {each}; {rate(document['all_tokens_per_second'])} a second of all together{written}", *cut]
    for team in teams:
        ranks = " and ".join(f"rank {rank}" for rank in team["members"])
        lines.append(f"{ranks}: {counted(team['texts'], 'texts')}, {counted(team['tokens'], 'tokens')}")
    short, where = in_words(document.get("wire", WIRES[0]))
    if short != WIRES[0]:
        lines.append(f"{short} on the wire{where}: probabilities of words differ from the exact ones by up to {document['wire_error']:.2g}")
    return "\n".join(lines)


def _cut_off(document: Mapping[str, Any]) -> str:
    """Return how many answers would have gone on, and what to do about it."""
    count, every = document["cut_off"], document["requests"]
    said = "the answer was cut off; it" if every == 1 else f"{count} of {every} answers were cut off; they"
    return f"{said} may be longer by --max-tokens, or max_tokens where a line has its own, and --context"


def _median(values: Sequence[float]) -> float | None:
    return _short(float(median(values))) if values else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    return _short(value) if isinstance(value, float) else value
