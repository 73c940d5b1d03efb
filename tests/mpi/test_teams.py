"""Teams and stages on real ranks against transformers' outputs: alone, in stages, divided, and all of these at once."""

from types import SimpleNamespace

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import COLUMNS, GOLDEN, HEADS, ROWS, check_results, desk_of, opened, segments_of

from hepti_mpi import splits
from hepti_mpi.comm.mail import IDLE_LOOK_SECONDS, LOOK_SECONDS, Mail
from hepti_mpi.engine import crew as crews
from hepti_mpi.program.placement import Placement, Stage, Team
from hepti_mpi.serving import teams
from hepti_mpi.tuning.teaming import Teamed

OWN = {"collectives": "own", "reduction": "reduce_scatter"}


def stage(store, members, first, count, layout=(HEADS, COLUMNS), rows=9):
    plan = plan_of(store, (layout,) * count, (1,) * len(members), first=first, total=rows, **OWN)
    return Stage(tuple(members), plan)


def pipeline(store, groups, layout=(HEADS, COLUMNS)):
    """Stages of about as many layers on each group of ranks."""
    groups = groups[: store.spec.layers]
    counts = splits.split(store.spec.layers, (1,) * len(groups))
    return Team(tuple(stage(store, ranks, sum(counts[:at]), counts[at], layout) for at, ranks in enumerate(groups)))


def each_alone(store, size):
    return [pipeline(store, [[rank]]) for rank in range(size)]


def each_apart(store, size):
    """Every rank several times, beside itself."""
    return [team for team in each_alone(store, size) for _ in range(2)]


def in_stages(store, size):
    return [pipeline(store, [[rank] for rank in reversed(range(size))])]  # rank 0 is the last


def divided(store, size):
    return [pipeline(store, [list(range(size))])]


def stages_that_divide(store, size):
    return [pipeline(store, [group for group in (list(range(0, size, 2)), list(range(1, size, 2))) if group], (ROWS, ROWS))]


def the_last_alone(store, size):
    """Rank 0 rests where there are three, and gives others their batches all the same."""
    return [pipeline(store, [list(range(size > 2, size - 1)) or [0]]), *([pipeline(store, [[size - 1]])] if size > 1 else [])]


WAYS = [each_alone, each_apart, in_stages, divided, stages_that_divide, the_last_alone]
CASES = [(case, made) for case in ("bert", "vit", "modernbert", "mpnet", "dinov2_registers") for made in WAYS]
OTHERS = ("roberta", "xlm_roberta", "camembert", "distilbert", "electra", "nomicbert", "dinov2", "bert_seqcls", "bert_tokencls")


@pytest.mark.parametrize("case, made", [*CASES, *((case, in_stages) for case in OTHERS)])
def test_answers_of_teams(machine, folder, monkeypatch, case, made):
    monkeypatch.setattr(crews, "Segments", segments_of)
    world = machine.world
    store = opened(folder, case, world.rank, world)
    placement = Placement(tuple(made(store, world.size)))
    loaded = crews.load(machine, store, placement, {})
    for path in sorted((GOLDEN / case).glob("expected*.npz")):
        ready = type("Ready", (), {"machine": machine, "store": store, "spec": store.spec})
        requests, desk = desk_of(ready, path, batch_rows=8)
        teamed = Teamed(loaded, placement, [0.01] * len(placement.teams), None, {})
        outcome = teams.answer(machine, teamed, desk.answerer if desk else teams_answerer(store), desk)
        assert [fact["host"] for fact in outcome.facts] == list(machine.cores.hosts)
        if requests is not None:
            check_results(path, requests, desk.sink, ("last_hidden_state", "logits"))
            assert outcome.answered == len(requests)
        world.barrier()


def teams_answerer(store):
    from test_answers import EVERYTHING

    from hepti_mpi.serving.request import Answerer

    return Answerer(store, EVERYTHING)


@pytest.mark.parametrize("members", [(0,), (1,), (0, 1)])
def test_who_has_no_part_looks_seldom(machine, folder, members):
    """Its host's cores are another rank's; also rank 0's, where nobody else leads a team."""
    world, store = machine.world, opened(folder, "bert", machine.world.rank, machine.world)
    members = tuple(rank for rank in members if rank < world.size) or (0,)
    placement = Placement(tuple(pipeline(store, [[rank]]) for rank in members))
    crew = SimpleNamespace(leads=True, members=(world.rank,)) if world.rank in members else None
    mail = teams.mail_of(world, placement, crew)
    mail.close()
    hears = members != (0,) if world.rank == 0 else world.rank in members
    assert mail.most == (LOOK_SECONDS if hears else IDLE_LOOK_SECONDS)


def test_letters_of_all_sizes(machine):
    """To oneself and to others, of no array and of some longer than what is sent at once, in the order in which they were written."""
    world = machine.world
    mail = Mail(world, range(world.size))
    sizes = [(0,), (3,), (100_000,), (0, 7), (50, 999)]
    for number, shape in enumerate(sizes):
        for peer in range(world.size):
            mail.send(peer, "here", {"number": number}, {"x": np.full(shape, world.rank, np.float32), "y": np.arange(number)})
    came = {rank: [] for rank in range(world.size)}
    for _ in range(world.size * len(sizes)):
        letter = mail.take("here", 60.0)
        came[letter.sender].append(letter.facts["number"])
        assert letter.arrays["x"].shape == sizes[letter.facts["number"]] and (letter.arrays["x"] == letter.sender).all()
        assert letter.arrays["y"].tolist() == list(range(letter.facts["number"]))
    assert all(numbers == list(range(len(sizes))) for numbers in came.values())
    assert mail.take("here", 0.0) is None
    world.barrier()
    mail.close()
