"""Where more ranks stop helping: the best plan on the first n ranks of a profile, for growing n. Pure."""

from dataclasses import replace

from hepti_mpi.cluster.profile import ClusterProfile, first_ranks
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods
from hepti_mpi.planning.candidates import Candidate
from hepti_mpi.planning.demand import Demand

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def by_ranks(method: str, spec: ModelSpec, source_hash: str, profile: ClusterProfile, demand: Demand) -> dict[int, Candidate]:
    """Return {number of ranks: best plan on that many} where there is one; the last is the whole profile. Raises: CapacityError."""
    ranks = len(profile.nodes)
    sizes = [size for size in SIZES if size < ranks] + [ranks]
    chosen = {}
    for size in sizes:
        part = replace(demand, limits=demand.limits and demand.limits[:size])
        try:
            chosen[size] = methods.decide(method, spec, source_hash, first_ranks(profile, size), part).chosen
        except CapacityError:
            if size == ranks:
                raise
    return chosen
