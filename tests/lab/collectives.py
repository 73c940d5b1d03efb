"""How long uneven exchanges take against what the links allow; run by every rank of a lab:

    python -m tests.lab run --program tests/lab/collectives.py mixed4 -- [BYTES] [MBIT]

Knows the ways to exchange and a clock; does not know the engine. The blocks are in proportion to the speeds of `mixed4`. All ways are
measured in turns; the last line is JSON.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from hepti_mpi import splits
from hepti_mpi.comm.exchange import Exchanges
from hepti_mpi.comm.ranks import Comm

LIMIT = 1.15  # times what the busiest link needs for 1 MiB or more, that our rings may take; else the exit code is 1
SPEEDS = (1 / 2.5, 1 / 3.5, 1 / 6, 1 / 9)
WIDTH, REPEAT, TAG = 1024, 15, 7


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    size, mbit = float(given.get(0, 1 << 20)), float(given.get(1, 200))
    world = Comm.world()
    exchanges = Exchanges(world, "sleep")
    members = list(range(world.size))
    counts = splits.split(round(size / 4 / WIDTH), (SPEEDS * world.size)[: world.size])
    rows = sum(counts)
    spans = [slice(start, start + count) for start, count in zip(splits.starts(counts), counts)]
    whole, own, sums = (np.zeros((count, WIDTH), np.float32) for count in (rows, counts[world.rank], counts[world.rank]))
    terms = np.full_like(whole, world.rank + 1)
    blocks, parts = [whole[span] for span in spans], [terms[span] for span in spans]
    peers = [rank for rank in members if rank != world.rank]
    came = [(peer, np.zeros_like(own)) for peer in peers]
    transfers = {
        "allgatherv, ring": exchanges.ring_gather(blocks, members, TAG),
        "allgatherv, direct": exchanges.direct([(p, blocks[world.rank]) for p in peers], [(p, blocks[p]) for p in peers], TAG + 1),
        "reduce_scatter, ring": exchanges.ring_reduce(parts, sums, members, TAG + 2),
        "reduce_scatter, direct": exchanges.direct([(p, parts[p]) for p in peers], came, TAG + 3),
    }
    calls = {name: lambda transfer=transfer: exchanges.wait([exchanges.start(transfer)]) for name, transfer in transfers.items()}

    def direct_sum(receive: Callable[[], None] = calls["reduce_scatter, direct"]) -> None:
        receive()
        np.copyto(sums, parts[world.rank])
        for _, block in came:
            np.add(sums, block, out=sums)

    calls["reduce_scatter, direct"] = direct_sum
    calls["allgatherv, MPI"] = lambda: world.allgather_rows(own, whole, counts)
    calls["reduce_scatter, MPI"] = lambda: world.reduce_scatter(terms, sums, counts)
    gathered = np.repeat(np.arange(world.size) + 1, counts)[:, None]  # what the rows hold then
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEAT + 2):
        for name, call in calls.items():
            whole[:], sums[:] = 0, 0
            blocks[world.rank][:] = own[:] = world.rank + 1
            world.barrier()
            world.quick_barrier()  # the other one leaves ranks asleep for up to some milliseconds
            begin = time.perf_counter()
            call()
            spent = max(world.gather_all(time.perf_counter() - begin))
            right = whole == gathered if name.startswith("allgatherv") else sums == sum(range(world.size + 1))
            assert right.all(), f"{name} of rank {world.rank} is wrong"
            if turn >= 2:
                times[name].append(spent)
    if world.rank:
        return
    row_bytes, bandwidth = 4 * WIDTH, mbit * 1e6 / 8
    # the ring puts least on the busiest link: all blocks but the smallest
    least = (rows - min(counts)) * row_bytes / bandwidth
    result = {name: float(np.median(values)) for name, values in times.items()}
    print(f"{rows * row_bytes} bytes in blocks of {counts} rows; the busiest link needs {least * 1e3:.1f} ms at {mbit:g} Mbit/s")
    for name, seconds in sorted(result.items()):
        print(f"{name:24} {seconds * 1e3:7.1f} ms  {seconds / least:.2f} x")
    print(json.dumps({"format": "hepti-collectives", "bytes": rows * row_bytes, "least_seconds": least, "median_seconds": result}))
    if rows * row_bytes >= 1 << 20 and max(result["allgatherv, ring"], result["reduce_scatter, ring"]) > LIMIT * least:
        sys.exit(1)


if __name__ == "__main__":
    main()
