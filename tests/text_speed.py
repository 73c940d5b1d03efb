"""How fast ranks of this machine take in a prompt and add tokens, each rank with one thread and an equal share: a line a store, and
one for each rank of where a token's time went there, in the mean: what it computed, sums (with waiting for them), words and the rest.

    mpirun -n 2 python tests/text_speed.py weights/smollm2-q4.h5 weights/llama-3.2-1b-q4.h5
"""

import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from made_plans import plan_of

from hepti_mpi import splits
from hepti_mpi.engine import decoder as decoders
from hepti_mpi.engine import fetching
from hepti_mpi.engine import machine as machines
from hepti_mpi.engine import texts as loading
from hepti_mpi.program.placement import whole
from hepti_mpi.serving.stepping import Ranks
from hepti_mpi.weights.outer import OuterWeights

PROMPT, TOKENS, TURNS, CHUNK = 128, 64, 3, decoders.ROWS


def even_plan(store, ranks):
    equal = (1,) * ranks
    return plan_of(store, ("heads", "columns"), splits.split(store.spec.heads, equal, store.spec.group), equal, equal, total=1)


def taken(ranks, ids):
    """Return rows a second in which a prompt is taken in, and the likeliest token behind it."""
    begin = time.perf_counter()
    for first in range(0, len(ids), CHUNK):
        scores = ranks.prefill(0, ids[first : first + CHUNK], first, 1)
    return len(ids) / (time.perf_counter() - begin), int(scores.ids[scores.logits.argmax()])


def soonest(ranks, ids):
    """Return rows a second of the soonest of some turns, of a short and a long prompt."""
    return [max(taken(ranks, ids[:size])[0] for _ in range(TURNS)) for size in (PROMPT, len(ids))]


def added(ranks, token):
    """Return the seconds of each token, greedy, behind a prompt."""
    times = []
    for place in range(PROMPT, PROMPT + TOKENS):
        begin = time.perf_counter()
        (scores,) = ranks.decode([(0, token, place)], 1)
        token = int(scores.ids[scores.logits.argmax()])
        times.append(time.perf_counter() - begin)
    return times


def measured(decoder, act, *args):
    """Return what rank 0 measures in `act`, called with `args`, and what each rank spent meanwhile. Collective."""
    before, world, found = dict(decoder.spent), decoder.machine.world, None
    if world.rank:
        decoder.follow()
    else:
        found = act(*args)
        decoder.end()
    return found, world.gather_all({name: seconds - before[name] for name, seconds in decoder.spent.items()})


def main():
    machine = machines.start(1)
    own = [rank for rank, host in enumerate(machine.cores.hosts) if host == machine.cores.hosts[machine.world.rank]]
    if 1 < len(own) <= len(machine.cores.whole):  # each has a core of its own, as ranks have that nobody gave threads
        os.sched_setaffinity(0, {machine.cores.whole[own.index(machine.world.rank)]})
    for path in map(Path, sys.argv[1:]):
        store = fetching.open_store(machine, path)
        decoder = loading.load(machine, store, whole(even_plan(store, machine.world.size)), 1, 4 * PROMPT)
        ranks, ids = Ranks(decoder, OuterWeights(store)), np.random.default_rng(0).integers(1, 500, 4 * PROMPT).tolist()
        speeds, _ = measured(decoder, soonest, ranks, ids)
        begun, _ = measured(decoder, taken, ranks, ids[:PROMPT])
        times, spent = measured(decoder, added, ranks, begun and begun[1])
        if machine.world.rank:
            continue
        name, (short, long) = f"{path.name}, {machine.world.size} ranks", speeds
        print(f"{name}: prompt of {PROMPT} {short:.0f} tokens/s, of {4 * PROMPT} {long:.0f}; added {1 / median(times):.1f}")
        for rank, own in enumerate(spent):
            own["rest"] = sum(times) - sum(own.values())
            parts = ", ".join(f"{part.removesuffix('_seconds')} {seconds / TOKENS * 1e3:.2f}" for part, seconds in own.items())
            print(f"  rank {rank}, ms of a token: {parts}; quarter of tokens below {sorted(times)[TOKENS // 4] * 1e3:.2f}")


if __name__ == "__main__":
    main()
