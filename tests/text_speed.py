"""How fast ranks of this machine take in a prompt and add tokens, each rank with one thread and an equal share: a line a store.

    mpirun -n 2 python tests/text_speed.py weights/smollm2-q4.h5 weights/llama-3.2-1b-q4.h5
"""

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from hepti_mpi import splits
from hepti_mpi.engine import decoder as decoders
from hepti_mpi.engine import fetching
from hepti_mpi.engine import machine as machines
from hepti_mpi.engine import texts as loading
from hepti_mpi.program.placement import whole
from hepti_mpi.program.plan import Plan
from hepti_mpi.serving.stepping import Ranks
from hepti_mpi.weights.outer import OuterWeights

PROMPT, TOKENS, TURNS, CHUNK = 128, 64, 3, decoders.ROWS


def even_plan(store, ranks):
    spec, equal = store.spec, (1,) * ranks
    parts = splits.split(spec.heads, equal), splits.split(spec.ffn, equal, spec.column_granule)
    layout, parts = (("heads", "columns"), parts) if ranks > 1 else (("local", "rows"), ((0,), (0,)))
    return Plan(spec.name, store.source_hash, (layout,) * spec.layers, *parts, splits.split(1, equal), ("here",) * ranks,
                ("packed",) * ranks)  # fmt: skip


def taken(ranks, ids):
    """Return rows a second in which a prompt is taken in, and the likeliest token behind it."""
    begin = time.perf_counter()
    for first in range(0, len(ids), CHUNK):
        scores = ranks.prefill(0, ids[first : first + CHUNK], first, 1)
    return len(ids) / (time.perf_counter() - begin), int(scores.ids[scores.logits.argmax()])


def added(ranks, token):
    """Return the median of the seconds of a token, greedy, behind a prompt."""
    times = []
    for place in range(PROMPT, PROMPT + TOKENS):
        begin = time.perf_counter()
        (scores,) = ranks.decode([(0, token, place)], 1)
        token = int(scores.ids[scores.logits.argmax()])
        times.append(time.perf_counter() - begin)
    return median(times)


def main():
    machine = machines.start(1)
    for path in map(Path, sys.argv[1:]):
        store = fetching.open_store(machine, path)
        decoder = loading.load(machine, store, whole(even_plan(store, machine.world.size)), 1, 4 * PROMPT)
        if machine.world.rank:
            decoder.follow()
            continue
        ranks, ids = Ranks(decoder, OuterWeights(store)), np.random.default_rng(0).integers(1, 500, 4 * PROMPT).tolist()
        short, long = (max(taken(ranks, ids[:size])[0] for _ in range(TURNS)) for size in (PROMPT, 4 * PROMPT))
        _, token = taken(ranks, ids[:PROMPT])
        seconds, counted = added(ranks, token), machine.world.size
        print(f"{path.name}, {counted} ranks: prompt of {PROMPT} {short:.0f} tokens/s, of {4 * PROMPT} {long:.0f}; added {1 / seconds:.1f}")
        decoder.end()


if __name__ == "__main__":
    main()
