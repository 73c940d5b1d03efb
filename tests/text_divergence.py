"""How far the next-token chances of stores are from another store's, on the tokens of a file of logits that llama-perplexity wrote
(--kl-divergence-base): the positions and the mean of its --kl-divergence, so that both can be compared.

    python tests/text_divergence.py base.kld weights/smollm2-f32.h5 weights/smollm2-q4.h5
"""

import struct
import sys
from pathlib import Path

import numpy as np
from text_speed import even_plan

from hepti_mpi.engine import fetching
from hepti_mpi.engine import machine as machines
from hepti_mpi.engine import texts as loading
from hepti_mpi.program.placement import whole
from hepti_mpi.serving.stepping import Ranks
from hepti_mpi.weights.outer import OuterWeights


def tokens_of(path):
    """Return the tokens [chunks, rows] of a file of logits."""
    with path.open("rb") as file:
        mark, rows, _, chunks = struct.unpack("<8s3i", file.read(20))
        assert mark == b"_logits_"
        return np.frombuffer(file.read(4 * rows * chunks), "<i4").reshape(chunks, rows)


def log_chances(ranks, tokens):
    """Return the logarithms of the chances behind the second half of some tokens but the last, float32 [rows / 2 - 1, words]."""
    logits = ranks.all_logits(tokens.tolist())[len(tokens) // 2 : -1]
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main():
    machine = machines.start(1)
    chunks, opened = tokens_of(Path(sys.argv[1])), []
    for path in map(Path, sys.argv[2:]):
        store = fetching.open_store(machine, path)
        opened.append(Ranks(loading.load(machine, store, whole(even_plan(store, 1)), 1, chunks.shape[1]), OuterWeights(store)))
    found = {path: ([], []) for path in sys.argv[3:]}
    for tokens in chunks:
        right, *others = (log_chances(ranks, tokens) for ranks in opened)
        for (divergences, same), other in zip(found.values(), others):
            divergences.append((np.exp(right) * (right - other)).sum(axis=1))
            same.append(right.argmax(axis=1) == other.argmax(axis=1))
    for path, (divergences, same) in found.items():
        every = np.concatenate(divergences)
        error, top = every.std() / len(every) ** 0.5, 100 * np.concatenate(same).mean()
        print(f"{Path(path).name}: mean {every.mean():.6f} +- {error:.6f}, median {np.median(every):.6f}; same word first {top:.1f} %")


if __name__ == "__main__":
    main()
