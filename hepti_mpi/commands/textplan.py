"""What `plan` shows of texts: the ways in which ranks may write together, and who has what. Knows the order in which that is shown."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hepti_mpi.commands.options import demand_of
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.writers import method_of
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.cluster.profile import ClusterProfile
    from hepti_mpi.models.spec import ModelSpec


def show(spec: "ModelSpec", source_hash: str, profile: "ClusterProfile", prompt: int, tokens: int, options: dict[str, Any]) -> None:
    """Plan for one text, of a prompt of so many rows and tokens that are added to it. Raises CapacityError, PlanError."""
    from hepti_mpi.planning import decoding, texts
    from hepti_mpi.planning.memory import cache_bytes
    from hepti_mpi.reporting import generation, records
    from hepti_mpi.reporting.tables import duration, milliseconds, size
    from hepti_mpi.serving.chunks import CHUNK

    begin, chunk = time.perf_counter(), min(prompt, CHUNK)
    sizes = {"rows": 1, "attended": prompt + tokens // 2, "largest": chunk, "longest": chunk}
    demand = demand_of(sizes, options, len(profile.nodes))
    demand = replace(demand, kept=prompt + tokens, prompt=prompt, answer=tokens)
    chosen = texts.decide(method_of(options), spec, source_hash, profile, demand)
    seconds, bound = time.perf_counter() - begin, decoding.bound(spec, profile, demand.attended)
    first = None
    if chosen.decision is not None:
        first = decoding.prompt_seconds(spec, profile, demand, chosen.decision.chosen.plan)
    least = decoding.prompt_bound(spec, source_hash, profile, demand, [chosen.decision.chosen.plan] if chosen.decision else [])
    SCREEN.show(generation.ways_lines(chosen, first, SCREEN.width) + "\n")
    if chosen.in_stages and chosen.staged is not None:
        SCREEN.show(generation.stages_lines(chosen.staged, profile.hosts, SCREEN.width))
    elif chosen.decision is not None:
        SCREEN.draw(chosen.decision.chosen.plan)
        SCREEN.show("\n" + records.rank_lines(chosen.decision, SCREEN.width))
    whole = duration(chosen.prompt_seconds + tokens * chosen.seconds)
    SCREEN.show(f"{counted(prompt, 'rows')} and {counted(tokens, 'tokens')}: {whole}")
    SCREEN.show(f"bound of a token: {milliseconds(bound)} ms, all weights read once, each board at its own rate, and a latency a sum; "
                f"of the first: {milliseconds(least)} ms, the longer of computing and of sending, were the other free")
    cache = (prompt + tokens) * cache_bytes([layer.attention for layer in spec.each()], spec.kv_heads, demand.cache)
    SCREEN.show(f"keys and values of these rows take {size(cache)} in {demand.cache}, those of each head counted once")
    SCREEN.show(f"planned {counted(len(profile.nodes), 'ranks')} in {seconds:.2f} s")
    SCREEN.document(generation.ways_document(chosen, first) | {"bound_token_seconds": float(f"{bound:.5g}")}
                    | {"bound_first_token_seconds": float(f"{least:.5g}")}
                    | {"cache_format": demand.cache, "cache_bytes": cache})
