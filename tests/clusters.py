"""Made-up cluster profiles for the tests of planning: boards of given speed, memory and links."""

from dataclasses import replace

from hepti_mpi.cluster.profile import ClusterProfile, NodeProfile, scaled

GIB = 1 << 30
CURVE = (1, 8, 32, 128)


def node(gflops, memory=8 * GIB, host="pi0", cores=4, threads=4):
    """A board that multiplies at `gflops` once the reading of weights, 1 ns each, no longer decides."""
    seconds = tuple(max(1e-9, 2 * rows / (gflops * 1e9)) for rows in CURVE)
    return NodeProfile(host, cores, threads, memory, CURVE, seconds, 4 / (gflops * 1e9), 2e-9, 5e-5)


def square(ranks, value):
    return tuple(tuple(0.0 if i == j else float(value) for j in range(ranks)) for i in range(ranks))


def cluster(speeds, mbit=1000.0, latency=1e-4, memory=8 * GIB, hosts=None):
    """A profile of boards with `speeds` in GFLOP/s; `memory` in bytes, for all or one per rank."""
    ranks = len(speeds)
    memories = memory if isinstance(memory, (list, tuple)) else [memory] * ranks
    hosts = hosts or [f"pi{rank}" for rank in range(ranks)]
    nodes = tuple(node(speed, size, host) for speed, size, host in zip(speeds, memories, hosts))
    return ClusterProfile(nodes, square(ranks, latency), square(ranks, mbit * 125_000), {"onnxruntime": "1.2.3"}, (56, 101), latency)


def with_alone(profile, speedup):
    """The same boards, where a rank that computes alone on its host is `speedup` times as fast, and has the memory of all."""

    def alone(node):
        mates = profile.hosts.count(node.host)
        faster = scaled(replace(profile, nodes=(node,)), [1 / speedup]).nodes[0]
        return replace(faster, threads=mates, memory_bytes=mates * node.memory_bytes)

    nodes = [replace(node, threads=1, cores=profile.hosts.count(node.host)) for node in profile.nodes]
    return replace(profile, nodes=tuple(replace(node, alone=alone(node)) for node in nodes))
