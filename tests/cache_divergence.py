"""What a cache in float16 costs a text beside one in float32, on one rank of one thread: a line for each length of the text so far, with
milliseconds of an added token (medians, in turns) and their ratio, how far the next-token chances are from each other on these rows, and
on how many of them the same word comes first. The text is the words of a file, which is repeated where it is too short.

    python tests/cache_divergence.py weights/smollm2.h5 README.md 128 1024 4096
"""

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from text_speed import even_plan

from hepti_mpi.engine import fetching
from hepti_mpi.engine import machine as machines
from hepti_mpi.engine import texts as loading
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.program.placement import whole
from hepti_mpi.serving.chunks import CHUNK
from hepti_mpi.serving.stepping import Ranks
from hepti_mpi.weights.outer import OuterWeights

CACHES, GREEDY = ("float32", "float16"), 128


def chances(logits):
    """Return the logarithms of the chances behind rows, [rows, words]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def added(ranks, token, place):
    """Return the seconds of a token, and the likeliest one behind it."""
    begin = time.perf_counter()
    (scores,) = ranks.decode([(0, token, place)], 1)
    return time.perf_counter() - begin, int(scores.ids[scores.logits.argmax()])


def main():
    machine, lengths = machines.start(1), list(map(int, sys.argv[3:]))
    store = fetching.open_store(machine, Path(sys.argv[1]))
    plan, positions = whole(even_plan(store, 1)), max(lengths) + GREEDY
    each = [Ranks(loading.load(machine, store, plan, 1, positions, cache), OuterWeights(store)) for cache in CACHES]
    ids = Tokens(store.files).plain(Path(sys.argv[2]).read_text(), sys.argv[2])
    ids, first, divergences, same = np.resize(ids, max(lengths)).tolist(), 0, [], []
    for length in sorted(lengths):
        for start in range(first, length, CHUNK):
            right, other = (chances(ranks.logits(0, ids[start : min(length, start + CHUNK)], start)) for ranks in each)
            divergences.append((np.exp(right) * (right - other)).sum(axis=1))
            same.append(right.argmax(axis=1) == other.argmax(axis=1))
        first, last, times, texts = length, int(right[-1].argmax()), [[], []], [[], []]
        for place in range(length, length + GREEDY):
            for ranks, text, took in zip(each, texts, times) if place % 2 else reversed(list(zip(each, texts, times))):
                seconds, token = added(ranks, text[-1] if text else last, place)
                text.append(token)
                took.append(seconds)
        alike = next((at for at, (one, two) in enumerate(zip(*texts)) if one != two), GREEDY)
        one, two = (1e3 * median(took) for took in times)
        every = np.concatenate(divergences)
        first_alike = 100 * np.concatenate(same).mean()
        print(f"{length} rows: {one:.2f} and {two:.2f} ms a token, {two / one:.3f}; KL mean {every.mean():.1e}, most {every.max():.1e};",
              f"same word first {first_alike:.2f} %; greedy alike for {alike} of {GREEDY} tokens", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
