"""The same tables as of a bench, by prices: what every method is predicted to take on every cluster, beside the bound. Takes minutes.

    python -m tests.lab.prices [--clusters even4,pi54] [--rows 64,128,384] [--models bert-large,vit-large] [--formats f32,q8]

Knows what the lab's links are like beside their rates (measured by `profile` in it); does not run anything: all is [predicted].
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from hepti_mpi.cluster.boards import board_named
from hepti_mpi.cluster.profile import EMULATION, ClusterProfile, Edges
from hepti_mpi.errors import CapacityError, HeptiError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.spec import ModelSpec, reduced
from hepti_mpi.planning import baselines, methods
from hepti_mpi.planning.bound import Bound, bound
from hepti_mpi.planning.candidates import Candidate
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import kind_of
from hepti_mpi.reporting.above import Measured, above_bound

from .clusters import Cluster, cluster_named
from .errors import LabError
from .steptimes import step_times

CLUSTERS = "even4,mixed4,skewed4,slowlink4,wifi3,pi4x4,pi54,desk3,pair22,pi8"
HEAD = ("cluster", "model", "rows", "wire", "ms", "bound", "perfect", "nearness", "over the best other", "over megatron", "plan",
        "above the bound, ms")  # fmt: skip
FORCED = ("tensor", "hybrid", "sequence")
BOOSTED = tuple(f"{name}{methods.BOOST}" for name in baselines.NAMES if name != "single")
# What `profile` finds in the lab beside rates and boards (mixed4, pi54, wifi3; 2026-11-27): of an exchange, to start it, and per byte
# sent; of a message, one way; what passes an idle link at once; the part of a rate that is data; what rank 0 does around the layers.
EXCHANGE, START, START_PER_BYTE, LATENCY, AHEAD, DATA = 0.24e-3, 0.06e-3, 2e-10, 80e-6, 118e3, 0.955
EDGES = Edges(element=2e-9, mac=2.5e-11, request=1e-5, batch=2e-4)


class Case(NamedTuple):
    """One line of the table: a cluster, a model and its format, rows and the most that is allowed on the wire; what the planner chose, the
    best of all else, what Megatron-LM takes, and where the time above the bound goes. `slow`: the motion of the cluster, in which it was
    priced: what is shown is divided by it."""

    cluster: str
    model: str
    rows: int
    wire: str
    chosen: Candidate
    bound: Bound
    best: tuple[str, float]
    megatron: float
    where: str
    slow: float


def described(cluster: Cluster, spec: ModelSpec) -> ClusterProfile:
    """Return the profile that measuring a cluster of the lab would find."""
    formats = spec.product_formats
    nodes = tuple(replace(board_named(host.board).node(host.name, formats), head_start_bytes=AHEAD) for host in cluster.hosts)
    pairs = [[(one, other) for other in cluster.hosts] for one in cluster.hosts]
    rates = tuple(tuple(0.0 if one is other else DATA * 125e3 * min(one.mbit, other.mbit) for one, other in row) for row in pairs)
    longer = [[1e-6 * (one.latency_us + other.latency_us) for one, other in row] for row in pairs]
    latency = tuple(tuple(0.0 if at == to else LATENCY + more for to, more in enumerate(row)) for at, row in enumerate(longer))
    return ClusterProfile(nodes, latency, rates, {EMULATION: ",".join(host.board for host in cluster.hosts)}, (spec.hidden, spec.ffn),
                          EXCHANGE, START, START_PER_BYTE, EDGES)  # fmt: skip


def cases(cluster: Cluster, model: str, format_name: str, rows: int, compared: bool) -> list[Case]:
    """Return what the planner chooses, float32 on the wire and float16; `compared`: beside all other methods."""
    found = random_model(model)
    spec = reduced(found.spec, format_name) if format_name != "f32" else found.spec
    profile, demand = described(cluster, spec), Demand(rows=rows)
    others: dict[str, float] = {}
    for name in (*FORCED, *baselines.NAMES, *BOOSTED) if compared else ():
        try:
            others[name] = methods.decide(name, spec, found.source_hash, profile, demand).chosen.price.seconds
        except CapacityError:
            continue
    best = min(others.items(), key=lambda item: item[1], default=("", np.inf))
    label = model if format_name == "f32" else f"{model} {format_name}"
    result = []
    for wire, name in (("float32", "hepti"), ("float16", "hepti-float16")):
        chosen = methods.decide(name, spec, found.source_hash, profile, demand).chosen
        possible = bound(spec, found.source_hash, profile, replace(demand, wires=(chosen.plan.wire,)), [chosen.plan])
        rest, megatron = where(spec, profile, rows, chosen, possible, cluster.slow), others.get("megatron", np.inf)
        result.append(Case(cluster.name, label, rows, wire, chosen, possible, best, megatron, rest, cluster.slow))
    return result


def where(spec: ModelSpec, profile: ClusterProfile, rows: int, chosen: Candidate, possible: Bound, slow: float) -> str:
    """Say where the time above the bound goes, in ms of the boards."""
    program = make_program(spec, chosen.plan)
    pricer = Pricer(spec, profile, rows)
    times = step_times(pricer, program, chosen.plan)
    measured = Measured([times.seconds], times.steps[:, None], times.began)
    above = above_bound(spec, profile, rows, chosen.plan, program, measured, possible.seconds)
    parts = sorted(((name, seconds / slow) for name, seconds in above.parts().items()), key=lambda part: -abs(part[1]))
    return f"rank {above.rank}: " + ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in parts if abs(seconds) >= 0.5e-3)


def line(case: Case) -> str:
    """Return it as a line of the table."""
    plan, seconds, ms = case.chosen.plan, case.chosen.price.seconds, 1e3 / case.slow
    name, other = case.best
    cells = (
        case.cluster, case.model, case.rows, case.wire, f"{ms * seconds:.0f}", f"{ms * case.bound.seconds:.0f}",
        f"{ms * case.bound.perfect:.0f}", f"{case.bound.nearness(seconds):.3f}",
        f"{seconds / other:.3f} {name}" if name else "", f"{seconds / case.megatron:.2f}" if name else "",
        f"{kind_of(plan)} {'+'.join(map(str, plan.tiles or (plan.rows,)))}", case.where,
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, line by line, and what is farthest."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.prices", description=__doc__)
    lists = {"clusters": (str, CLUSTERS), "rows": (int, "64,128,384"), "models": (str, "bert-large,vit-large"), "formats": (str, "f32,q8")}
    for name, (kind, default) in lists.items():
        parser.add_argument(f"--{name}", type=partial(_listed, kind), default=default, metavar="LIST", help=f"default: {default}")
    parser.add_argument("--alone", action="store_true", help="leave out the other methods: nearness only")
    options = parser.parse_args(arguments)
    try:
        clusters, known = [cluster_named(name) for name in options.clusters], {name: random_model(name).spec for name in options.models}
    except (LabError, HeptiError) as problem:
        parser.error(str(problem))
    print("All [predicted], in ms of the boards; requests of more rows than a model takes are left out.\n")
    print("| " + " | ".join(HEAD) + " |\n| " + " | ".join(["---"] * len(HEAD)) + " |")
    nearest, most = [], []
    for cluster, (model, spec), format_name, rows in product(clusters, known.items(), options.formats, options.rows):
        for case in cases(cluster, model, format_name, rows, not options.alone) if rows <= spec.positions else ():
            print(line(case), flush=True)
            nearest.append(case.bound.nearness(case.chosen.price.seconds))
            most.append(case.chosen.price.seconds / case.best[1])
    if not nearest:
        parser.error("no request of that many rows is taken by these models")
    below = sum(one < 0.9 for one in nearest)
    print(f"\nnearness: least {min(nearest):.3f}, median {np.median(nearest):.3f}, {below} of {len(nearest)} below 0.90; "
          f"regret: most {max(most):.3f}")  # fmt: skip
    return 0


def _listed(kind: type, text: str) -> list[Any]:
    return [kind(one) for one in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
