"""Write the profile of a made-up cluster, to plan on paper:

    python tests/make_profile.py 1024 big.json --gflops 24,18,12 --mbit 1000
    python -m hepti_mpi plan --weights weights/bert-large.h5 --profile big.json --scale scale.png

Boards of the given speeds follow each other. Knows the shape of BERT-Large only.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from clusters import cluster

SHAPE = (1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranks", type=int)
    parser.add_argument("output", type=Path)
    parser.add_argument("--gflops", default="24,18,12")
    parser.add_argument("--mbit", type=float, default=1000)
    options = parser.parse_args()
    speeds = [float(word) for word in options.gflops.split(",")]
    chosen = [speeds[rank % len(speeds)] for rank in range(options.ranks)]
    made = cluster(chosen, mbit=options.mbit, latency=1e-4, hosts=[f"board{rank}" for rank in range(options.ranks)])
    replace(made, shape=SHAPE).save(options.output)


if __name__ == "__main__":
    main()
