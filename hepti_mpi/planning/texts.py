"""How all ranks of a job write together: by heads and columns of each layer, in stages of layers, or one of them alone. Pure.

Knows what both ways take; how layers are divided is decoding.py's, which layers a stage has is staging.py's.
"""

from dataclasses import dataclass, replace

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import CapacityError, HeptiError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import decoding, staging
from hepti_mpi.planning.demand import Decision, Demand
from hepti_mpi.planning.reasons import unpacked
from hepti_mpi.planning.staging import Staged
from hepti_mpi.program.placement import Placement, whole

NAMES = (*decoding.BY_WEIGHTS, *staging.NAMES)
GAIN = 1.03  # times as soon as the best division of layers stages must promise to be


@dataclass(frozen=True)
class Chosen:
    """What was chosen. `seconds`: of an added token of one text; `prompt_seconds`: until a prompt is in and the word behind it known;
    `decision`: the best division of layers, and `staged`: the best stages, chosen or not, None where none was looked for or fits. `notes`:
    what is to be said of either."""

    placement: Placement
    seconds: float
    prompt_seconds: float
    decision: Decision | None
    staged: Staged | None
    notes: tuple[str, ...] = ()

    @property
    def in_stages(self) -> bool:
        return len(self.placement.stages) > 1


def check(name: str, spec: ModelSpec, demand: Demand, ranks: int) -> None:
    """Raise PlanError for what a method cannot be asked of so many ranks, whatever they turn out to be."""
    name = _meant(name, spec, ranks)
    if name in staging.NAMES:
        staging.check(demand, ranks)
    else:
        decoding.check(name, demand, ranks)


def _meant(name: str, spec: ModelSpec, ranks: int) -> str:
    return "single" if name in staging.NAMES and min(ranks, spec.layers) < 2 else name  # whoever is left of a job has all layers


def decide(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, texts: int = 1) -> Chosen:
    """Return by what as many `texts` at once are written soonest, or what a method says.

    Raises: CapacityError when nothing fits into memory, PlanError for a method that is not for texts.
    """
    found = _decided(name, spec, source_hash, profile, demand, texts)
    if demand.mode != "mapped":
        return found
    return replace(found, notes=tuple(unpacked(spec, [stage.plan for stage in found.placement.stages], demand.prepacked)))


def _decided(name: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand, texts: int) -> Chosen:
    """Return the same with nothing to be said of it."""
    name = _meant(name, spec, len(profile.nodes))
    if name in staging.NAMES:
        return _of_stages(staging.staged(name, spec, source_hash, profile, demand, texts), None)
    free = name in decoding.HEPTI and demand.layout is None and demand.shares is None
    decision, stages, refusal = None, None, None
    try:
        decision = decoding.decide(name, spec, source_hash, profile, demand)
    except CapacityError as error:
        refusal = error
    if free:
        try:
            stages = staging.staged("stages", spec, source_hash, profile, demand, texts)
        except HeptiError:
            pass  # there is no room for them, or are too few ranks or layers
    if decision is None:
        if stages is None:
            assert refusal is not None
            raise refusal
        return _of_stages(stages, None)
    plan = decision.chosen.plan
    divided = Chosen(whole(plan), decision.chosen.price.seconds, decoding.prompt_seconds(spec, profile, demand, plan), decision, stages)
    if stages is None:
        return divided
    first = texts * divided.prompt_seconds + demand.answer * decoding.step_seconds(spec, profile, demand, plan, texts)
    second = stages.prompts_seconds(texts) + demand.answer * staging.grouped(spec, profile, demand, stages, texts)[0]
    paged = "mapped" in plan.weights_mode and demand.mode != "mapped"  # which takes far longer than priced
    second *= GAIN * staging.factor(stages, profile)
    return _of_stages(stages, decision) if paged or second <= first else divided


def _of_stages(staged: Staged, decision: Decision | None) -> Chosen:
    return Chosen(staged.placement, staged.seconds, staged.prompt_seconds, decision, staged)
