"""Texts whose sums travel in a short type, where that changes no probability of a word behind a built-in text by more than is tolerated.

Knows plans, decoders and what they write; does not know how sums are made, nor how plans are found.
"""

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.engine import texts as loading
from hepti_mpi.engine.decoder import Decoder
from hepti_mpi.engine.loading import agreed
from hepti_mpi.engine.machine import Machine, Say, patiently
from hepti_mpi.engine.orders import Order
from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import passage_requests
from hepti_mpi.models.numerics import Array
from hepti_mpi.models.tasks.heads import embed
from hepti_mpi.planning import decoding
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.texts import Chosen
from hepti_mpi.program import placement as placements
from hepti_mpi.program.placement import Placement
from hepti_mpi.program.plan import WIRES, Plan, in_words, wire_of
from hepti_mpi.tuning.wires import ByLayer
from hepti_mpi.weights.outer import OuterWeights
from hepti_mpi.weights.store import Store
from hepti_mpi.wording import beside

PROMPT, SINGLE = 32, 2  # rows of the built-in text that are taken in at once, so that tiles travel, and one by one



@dataclass(frozen=True)
class Goal:
    """What a plan was made for and by: a method, what it was asked, the ranks' speeds, and by how much a probability may change.
    `load`: makes ready by a placement; `say`: tells a sentence."""

    store: Store
    profile: ClusterProfile
    method: str
    demand: Demand
    tolerance: float
    load: Callable[[Placement], Decoder | None]
    say: Say


@patiently
def loaded(
    machine: Machine, goal: Goal, placement: Placement, chosen: Chosen | None
) -> tuple[Placement, Chosen | None, Decoder | None, float]:  # fmt: skip
    """Load what was planned and see what its wire changes; where that is too much let a short type travel in as many layers as may have it,
    or plan anew without. Collective. Return also the largest change that is left.

    What is `chosen` is known on rank 0. Raises what deciding and loading raise.
    """
    decoder, plan = goal.load(placement), placement.together
    if plan is None or plan.wire == WIRES[0] or decoder is None:
        return placement, chosen, decoder, 0.0
    exact = _Exact(machine, goal.store, decoder)
    found = ByLayer(goal.tolerance, exact.error, plan.wires)
    if found.wires == plan.wires:
        return placement, chosen, decoder, found.error
    wire = wire_of(found.wires)
    (short, _), instead = in_words(plan.wire), "".join(in_words(wire))
    what = f"{short} on the wire changes probabilities of words by {beside(found.told, goal.tolerance)}"
    goal.say(f"{what}, more than --tolerance {goal.tolerance:g}: {instead} is used")
    decoder.send_as(wire)
    if wire == WIRES[0]:
        placement, chosen = loading.decide(machine, goal.store, goal.profile, goal.method, replace(goal.demand, wires=WIRES[:1]))
        if placement.together != decoder.part.plan:
            del decoder, exact, found
            gc.collect()  # what was loaded refers to itself; memory need not hold both
            decoder = goal.load(placement)
        return placement, chosen, decoder, 0.0
    placement, chosen = _priced(machine, goal, replace(plan, wire=wire), chosen)
    return placement, chosen, decoder, found.error


def _priced(machine: Machine, goal: Goal, plan: Plan, chosen: Chosen | None) -> tuple[Placement, Chosen | None]:
    """Return a plan as a placement with what it is predicted to take, and what was chosen with it instead of its own. Collective."""

    def priced() -> Chosen:
        assert chosen is not None and chosen.decision is not None
        spec, profile, demand = goal.store.spec, goal.profile, goal.demand
        seconds = decoding.step_seconds(spec, profile, demand, plan, 1)
        one = replace(plan, predicted_seconds=seconds)
        best = replace(chosen.decision.chosen, plan=one, price=replace(chosen.decision.chosen.price, seconds=seconds))
        prompt = decoding.prompt_seconds(spec, profile, demand, plan)
        return replace(chosen, placement=placements.whole(one), seconds=seconds, prompt_seconds=prompt,
                       decision=replace(chosen.decision, chosen=best))  # fmt: skip

    document, found = agreed(machine, priced, lambda one: one.placement.to_json())
    return placements.from_json(document), found[0] if found else None


class _Exact:
    """What is written behind a built-in text with float32 on the wire, to compare with."""

    def __init__(self, machine: Machine, store: Store, decoder: Decoder) -> None:
        """Collective."""
        self.world, self.decoder, self.rows = machine.world, decoder, None
        if self.world.rank == 0:
            self.rows = _built_in(store, min(PROMPT + SINGLE, decoder.positions))
        self.scores = self._scores((WIRES[0],) * store.spec.layers)

    def error(self, wires: tuple[str, ...]) -> float:
        """Return the largest difference of a probability with other types on the wire, by which sums go on to travel. Collective."""
        found, exact = self._scores(wires), self.scores
        self.decoder.spent = dict.fromkeys(self.decoder.spent, 0.0)
        return float(self.world.from_root(None if found is None or exact is None else float(np.abs(found - exact).max())))

    def _scores(self, wires: tuple[str, ...]) -> Array | None:
        """Return the probabilities [rows, words] of all words behind each row, on rank 0."""
        decoder = self.decoder
        decoder.send_as(wire_of(wires))
        if self.rows is None:
            decoder.follow()
            return None
        cut, found = max(1, len(self.rows) - SINGLE), list[Array]()
        for first, last in [(0, cut), *((row, row + 1) for row in range(cut, len(self.rows)))]:
            every = decoder.step(Order(0, 1, last - first, (first,), 0, every=True), self.rows[first:last])
            found += [np.exp(scores.logits - np.float32(scores.total)) for scores in every]
        decoder.end()
        return np.stack(found)


def _built_in(store: Store, rows: int) -> Array:
    """Return the embedded first tokens of a built-in text [rows, hidden], random ones for a model without a tokenizer."""
    spec, ids = store.spec, np.random.default_rng(0).integers(0, store.spec.numbers("ids"), rows)
    with suppress(InputError):
        every = [one.arrays["ids"] for one in passage_requests(spec, store.files) if one.error is None]
        text = np.concatenate(every)[:rows]
        ids[: len(text)] = text
    return embed(spec, OuterWeights(store), {"ids": ids, "positions": np.arange(rows)})
