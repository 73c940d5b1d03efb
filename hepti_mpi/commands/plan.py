"""The command that finds a plan: for ranks that were measured, or for boards that are described and that one need not have.

Knows the command's options and what it prints; does not know how a plan is found.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepti_mpi.commands import teams, textplan
from hepti_mpi.commands.options import (
    FILE,
    PIPELINE,
    ROWS,
    Within,
    check_positions,
    demand_of,
    grouped,
    one_of,
    planning_method,
    planning_options,
    request_rows,
    said_cache,
    weights_option,
    words_options,
)
from hepti_mpi.commands.paths import store_path, the_profile
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.writing import no_text, refuse_for_text
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.cluster.profile import ClusterProfile
    from hepti_mpi.models.spec import ModelSpec
    from hepti_mpi.planning.demand import Demand
    from hepti_mpi.program.placement import Placement

TOKENS = 128  # that are added to a prompt, where nobody says
MBIT, LATENCY_US = 940.0, 200.0  # of links between described boards, where nobody says: 1 Gbit/s and a switch
RANDOM = "random:"  # before the name of a model that needs no store to be planned for


@dataclass(frozen=True)
class Described:
    """Boards that are described instead of measured."""

    boards: str | None
    mbit: float | None
    latency_us: float | None

    def profile(self, spec: "ModelSpec") -> "ClusterProfile":
        """Return the profile that they would have, and show what is known of them."""
        from hepti_mpi.cluster.boards import cluster_of
        from hepti_mpi.reporting.inspection import board_lines

        names = [name.strip().lower() for name in (self.boards or "").split(",")]
        mbit, latency_us = self.mbit or MBIT, self.latency_us or LATENCY_US
        profile = cluster_of(names, mbit, latency_us * 1e-6, (spec.hidden, spec.ffn), spec.product_formats)
        SCREEN.show(board_lines(names, mbit, latency_us) + "\n")
        return profile


@click.command()
@weights_option
@click.option("--profile", "profile_file", type=FILE, help="Measured by the profile command; left out: the only one there is.")
@click.option("--entry", type=click.IntRange(1), help="Which of the profile's measurements for this model; left out: the last.")
@click.option("--boards", help="Plan for described boards instead, such as pi4,pi4,pi5; a wrong name is answered with the list.")
@click.option("--mbit", type=Within(0.1, 400_000), help=f"Mbit/s of the links between --boards; left out: {MBIT:g}.")
@click.option("--latency-us", type=Within(1, 1e6), help=f"Microseconds that a message between --boards takes; left out: {LATENCY_US:g}.")
@click.option("--rows", type=click.IntRange(1, 1 << 20),
              help=f"Rows (tokens, patches) of a request; left out: {ROWS}, or as many as the model takes.")
@click.option("--tokens", type=click.IntRange(1, 1 << 16),
              help=f"Of a model that generates text: tokens that are added one by one to a prompt of --rows rows; left out: {TOKENS}.")
@click.option("--output", type=FILE, help="Write the plan to this file.")
@one_of("--objective", words=("latency", "throughput"),
        help="What counts: how soon all ranks answer a batch (left out), or how many batches teams of them do.")  # fmt: skip
@click.option("--scale", type=FILE, help="Draw the latency of the best plan on the first n ranks, for growing n, to this .png picture.")
@planning_options
@words_options()
def plan(weights: Path | None, profile_file: Path | None, entry: int | None, output: Path | None, scale: Path | None, rows: int | None,
         tokens: int | None, objective: str | None, **options: Any) -> None:  # fmt: skip
    """Find the best division of a model over ranks or boards; needs no MPI.

    \b
    Examples:
      python -m hepti_mpi plan --weights weights/bert-large.h5 --profile hostfiles/pi4.profile.json --rows 128 --output plan.json
      python -m hepti_mpi plan --weights random:bert-large --boards pi4,pi4,pi4,pi4 --mbit 940
    """
    from hepti_mpi.planning import methods
    from hepti_mpi.planning.bound import bound
    from hepti_mpi.program import placement as placements
    from hepti_mpi.reporting import records

    described = grouped(Described, options)
    method = planning_method(options)
    if described.boards is not None and (profile_file is not None or entry is not None):
        raise click.UsageError("--profile and --entry are of ranks that were measured, --boards of described ones: leave one out")
    if described.boards is None and (described.mbit is not None or described.latency_us is not None):
        raise click.UsageError("--mbit and --latency-us are of the links between --boards; those of a profile were measured")
    if scale is not None and options["shares"] is not None:
        raise click.UsageError("--shares are of all ranks, --scale plans for fewer: leave one of them out")
    if scale is not None and scale.suffix.lower() != ".png":
        raise click.UsageError(f"--scale {scale} does not end in .png, which the picture is")
    if scale is not None and objective == "throughput":
        raise click.UsageError("--scale draws how soon a batch is answered: leave out --objective throughput")
    teams.check(options, objective or "auto", False, None)
    check_places(output, scale)
    spec, source_hash = _model(weights)
    if spec.generates:
        teamed = None if objective == "latency" else objective
        refuse_for_text({"output": output, "scale": scale, "objective": teamed, "boost": options["boost"]})
    else:
        no_text(said_cache(options), spec.name)
    rows, tokens = _sizes(spec, rows, tokens)
    profile = _measured(profile_file or the_profile(), entry, spec) if described.boards is None else described.profile(spec)
    if spec.generates:
        textplan.show(spec, source_hash, profile, rows, tokens, options)
        return
    begin = time.perf_counter()
    demand = demand_of({"rows": rows}, options, len(profile.nodes))
    if objective == "throughput" or options["layout"] == PIPELINE:
        placement = _arranged(spec, source_hash, profile, demand, options["layout"] == PIPELINE)
        _keep(placement, output)
        return
    decision = methods.decide(method, spec, source_hash, profile, demand)
    seconds = time.perf_counter() - begin
    possible = bound(spec, source_hash, profile, demand, [one.plan for one in (decision.chosen, *decision.others)])
    SCREEN.show(records.decision_lines(decision, SCREEN.width) + "\n")
    SCREEN.draw(decision.chosen.plan)
    SCREEN.show("\n" + records.rank_lines(decision, SCREEN.width))
    SCREEN.show(records.bound_line(decision, possible))
    SCREEN.show(f"planned {counted(len(profile.nodes), 'ranks')} in {seconds:.2f} s")
    SCREEN.document(records.decision_document(decision) | records.bound_document(decision, possible))
    _keep(placements.whole(decision.chosen.plan), output)
    if scale is not None:
        _draw_scale(method, spec, source_hash, profile, demand, scale)


def check_places(output: Path | None, scale: Path | None) -> None:
    """Raise HeptiError where what is found could not be written, before it is looked for."""
    from hepti_mpi.documents import check_document_place, check_place
    from hepti_mpi.errors import InputError, PlanError

    if output is not None:
        check_document_place(output, PlanError, "--output ")
    if scale is not None:
        check_place(scale, InputError, "--scale ")


def _sizes(spec: "ModelSpec", rows: int | None, tokens: int | None) -> tuple[int, int]:
    """Return how many rows a request or prompt has, and how many tokens are added to it. Raises InputError for what the model does not
    take."""
    from hepti_mpi.errors import InputError

    if tokens is not None and not spec.generates:
        raise InputError(f"--tokens is for models that generate text, which {spec.name} does not; leave it out")
    rows = request_rows(spec, rows)
    added = (tokens or min(TOKENS, max(1, spec.positions - rows))) if spec.generates else 0
    check_positions(spec, rows, added)
    return rows, added


def _arranged(
    spec: "ModelSpec", source_hash: str, profile: "ClusterProfile", demand: "Demand", pipeline: bool
) -> "Placement":  # fmt: skip
    """Find teams, and show them."""
    from hepti_mpi.planning.teams import arranged
    from hepti_mpi.reporting.teams import arrangement_document, arrangement_lines

    begin = time.perf_counter()
    found = arranged(spec, source_hash, profile, demand, pipeline)
    SCREEN.show(arrangement_lines(found, demand.rows, profile.hosts, SCREEN.width))
    SCREEN.show(f"planned {counted(len(profile.nodes), 'ranks')} in {time.perf_counter() - begin:.2f} s")
    SCREEN.document(arrangement_document(found, demand.rows))
    return found.placement


def _keep(placement: "Placement", output: Path | None) -> None:
    if output is not None:
        placement.save(output)
        SCREEN.say(f"plan written to {output}")


def _model(weights: Path | None) -> "tuple[ModelSpec, str]":
    """Return the spec of the model that is meant, and the hash of what it was made from."""
    from hepti_mpi.weights.store import Store

    if str(weights).startswith(RANDOM):
        from hepti_mpi.models.checkpoints.random import random_model

        model = random_model(str(weights))
        return model.spec, model.source_hash
    given = store_path(weights)
    with Store(given / "rank00.h5" if given.is_dir() else given) as store:
        return store.spec, store.source_hash


def _measured(file: Path, entry: int | None, spec: "ModelSpec") -> "ClusterProfile":
    """Return what was measured for a model of this shape, the last or the one that is named, and say what it is of."""
    from hepti_mpi.cluster import profile as profiles
    from hepti_mpi.errors import ProfileError

    every, shape = profiles.load_all(file), (spec.hidden, spec.ffn)
    wanted = profiles.in_formats(spec.product_formats).get(profiles.FORMATS, "f32")

    def formats(profile: "ClusterProfile") -> str:
        return str(profile.versions.get(profiles.FORMATS, "f32"))

    found = [profile for profile in every if (profile.shape, formats(profile)) == (shape, wanted)]
    if not found:
        measured = " or ".join(dict.fromkeys(f"{profile.shape} with {formats(profile)} weights" for profile in every))
        raise ProfileError(
            f"profile {file} was measured at (hidden, ffn) {measured}, the model has {shape} with {wanted} weights; "
            "measure with: mpirun -hostfile FILE python -m hepti_mpi profile --weights STORE"
        )
    if entry is not None and entry > len(found):
        raise ProfileError(f"profile {file} has {counted(len(found), 'entries')} for this model, not {entry}: {_entries(found)}")
    number = entry or len(found)
    profile = found[number - 1]
    SCREEN.show(f"planning for {_ranks(profile)}, as measured in {file}")
    if len(found) > 1 and entry is None:
        SCREEN.show(f"which was measured last; choose with --entry: {_entries(found)}")
    return profile


def _ranks(profile: "ClusterProfile") -> str:
    """Say which ranks were measured, and that boards are emulated where they are."""
    hosts = list(dict.fromkeys(profile.hosts))
    where = ", ".join(hosts[:4]) + ", ..." * (len(hosts) > 4)
    threads = ", ".join(dict.fromkeys(str(node.threads) for node in profile.nodes))
    boards = profile.emulated and f" as emulated boards ({profile.emulated})"
    many = len(profile.nodes) > 1
    return f"{counted(len(profile.nodes), 'ranks')} on {where}, threads {'each ' * many}{threads}{boards}"


def _entries(found: "list[ClusterProfile]") -> str:
    return "; ".join(f"{number}: {_ranks(profile)}" for number, profile in enumerate(found, 1))


def _draw_scale(method: str, spec: "ModelSpec", source_hash: str, profile: "ClusterProfile", demand: Any, picture: Path) -> None:
    from hepti_mpi.planning.scale import by_ranks

    chosen = by_ranks(method, spec, source_hash, profile, demand)
    for ranks, best in chosen.items():
        SCREEN.show(f"the first {counted(ranks, 'ranks')}: {best.price.seconds * 1e3:.0f} ms on {len(best.plan.active)} of them")
    from hepti_mpi.reporting import plots  # says what it lacks: only the picture needs that

    latencies, used = [best.price.seconds for best in chosen.values()], [len(best.plan.active) for best in chosen.values()]
    plots.plot_scale(list(chosen), latencies, used, picture, f"{spec.name}, {counted(demand.rows, 'rows')}: the best plan on n ranks")
    SCREEN.say(f"picture written to {picture}")
