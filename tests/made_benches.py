"""Records of benches that are made up, to be read and drawn."""

import json
import random

NAMES = ("hepti", "hepti-float16", "tensor", "hybrid", "sequence", "megatron", "voltage", "galaxy", "coedge", "edgeflow", "ram", "single",
         "galaxy-boost", "a-method-of-a-very-long-name-with-$x_1$-boost")  # fmt: skip
BOARDS = {
    "wifi2": (("pi1", 3), ("pi2", 6)),
    "mixed4": (("pi5-1", 2.5), ("pi4-1", 3.5), ("pi4-2", 6), ("nuc", 9)),
    "pi8 of a cluster with a long name / and a slash": tuple((f"raspberrypi-in-rack-{rank}.example.org", 4 + rank) for rank in range(8)),
}


def plan(boards, active, layers):
    rows = [8 if rank in active else 0 for rank in range(len(boards))]
    return {
        "hosts": [host for host, _ in boards], "layers": [["rows", "rows"]] * layers, "rows": rows,
        "heads": [0] * len(boards), "columns": [0] * len(boards),
    }  # fmt: skip


def request(boards, active, layers, dice):
    """Simulate a request: per layer two segments, each followed by an exchange that all leave together; returns events per rank."""
    events = [[] for _ in boards]
    now = 0.001
    for _ in range(layers):
        for body, share in (("attention", 0.4), ("mlp", 0.6)):
            ends = {rank: now + share * 0.05 / len(active) * dice.uniform(0.8, 1.3) for rank in active}
            after = max(ends.values()) + (0.006 if len(active) > 1 else 0)
            for rank in active:
                events[rank].append([body, "compute", round(now, 6), round(ends[rank], 6)])
                if len(active) > 1:
                    events[rank].append(["allgatherv", "wire", round(ends[rank] + 0.0001, 6), round(after, 6)])
            now = after + 0.0002
    return events


def above(seconds):
    """Some of it in each part, one of them below 0."""
    shares = {"share": -0.1, "few rows": 0.3, "allgatherv": 0.4, "gatherv": 0.1, "waiting": 0.1, "starts": 0.05, "rest": 0.15}
    return {"rank": 0, "seconds": seconds, "parts_seconds": {part: share * seconds for part, share in shares.items()}}


def bench(cluster, names=NAMES, layers=24, requests=9, seed=1):
    """The lines of one bench."""
    dice, boards = random.Random(seed), BOARDS[cluster]
    lines, summary = [], {}
    for place, name in enumerate(names):
        active = [0] if name == "single" else list(range(len(boards)))
        slower = 1 + 0.11 * place
        events = [[[b, k, s * slower, e * slower] for b, k, s, e in lane] for lane in request(boards, active, layers, dice)]
        total = max(event[3] for lane in events for event in lane)
        spent = {kind: [sum(e - b for _, k, b, e in lane if k == kind) for lane in events] for kind in ("compute", "wire")}
        parts = {"compute_seconds": spent["compute"], "wire_seconds": [s * 0.6 for s in spent["wire"]],
                 "wait_seconds": [s * 0.4 for s in spent["wire"]]}  # fmt: skip
        samples = [total * dice.uniform(0.98, 1.05) for _ in range(requests)]
        predicted = None if name == "ram" else total * dice.uniform(0.9, 1.12)
        lines.append({"kind": "method", "method": name, "strategy": "sequence", "layout": "alltoall/rows",
                      "plan": plan(boards, active, layers), "predicted_seconds": predicted})  # fmt: skip
        lines += [{"kind": "request", "method": name, "number": n, "seconds": s, **parts} for n, s in enumerate(samples)]
        lanes = [{"rank": r, "host": h, "board": f and str(f), "events": e} for r, ((h, f), e) in enumerate(zip(boards, events))]
        lines.append({"kind": "timeline", "method": name, "ranks": lanes})
        summary[name] = {"median_seconds": sorted(samples)[requests // 2], "predicted_seconds": predicted, "wire_bytes": 1 << 20,
                         "plan_hash": "0" * 16, "samples_seconds": samples, "above_bound": above(total - 0.8),
                         "late": 0.02 if name == "voltage" else 0.001}  # fmt: skip
    end = {"format": "hepti-bench", "format_version": 1, "model": "bert-large", "rows": 128, "cluster": cluster,
           "perfect_seconds": 0.7, "bound_seconds": 0.8, "bound_float16_seconds": 0.75, "methods": summary}  # fmt: skip
    return [*lines, end]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
