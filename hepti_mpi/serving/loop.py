"""Answer requests, batch after batch. Rank 0 leads: between batches it tells the others how many to answer next, to go on with another
plan, or to look at the links; they report how long they computed.

Knows batches, orders and what a rank notes of them; does not know why a plan is changed (adapt.py decides).
"""

import os
import resource
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hepti_mpi.cluster import probe
from hepti_mpi.comm.launcher import host_name
from hepti_mpi.comm.orders import Orders
from hepti_mpi.engine.loading import Ready, swap
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.models.spec import Weight
from hepti_mpi.models.tasks.heads import apply_head, embed
from hepti_mpi.program import plan as plans
from hepti_mpi.program.build import Compute
from hepti_mpi.program.plan import Plan
from hepti_mpi.serving.scheduler import batches
from hepti_mpi.tuning.heartbeat import Pulse
from hepti_mpi.tuning.watch import Steady, Watch
from hepti_mpi.weights.slices import span
from hepti_mpi.weights.store import Store

KEPT = 256  # batches whose steps are noted, the last ones
WARM_SECONDS = 0.2  # that the first batch may be predicted to take for it to be answered twice: new memory costs as much as a short one
Done = Callable[[Sequence[int], Sequence[dict[str, np.ndarray]], float], bool | None]


@dataclass
class Outcome:
    """What happened: latencies per batch, the rows of each request of the batches of one round and, on rank 0, seconds
    [ranks, batches, steps] of the last batches of the last plan and one row of facts per rank."""

    results: list[dict[str, np.ndarray]]
    latencies: list[float]
    rows: list[int]
    seconds: np.ndarray | None
    lengths: list[list[int]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)


class RootWeights(Mapping[str, np.ndarray]):
    """The embedding and head tensors of a store, mapped from its file when asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names = {w.name: w for w in store.weights.values() if w.part in ("embedding", "head")}

    def __getitem__(self, name: str) -> np.ndarray:
        weight: Weight = self.names[name]
        return self.store.array(span(weight))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def answer(
    ready: Ready, requests: Sequence[Request] | None, batch_rows: int, repeat: int, beside: Collection[str], done: Done,
    watch: Watch | None = None, keep: bool = True,
) -> tuple[Ready, Outcome]:  # fmt: skip
    """Answer all requests `repeat` times, in order; rank 0 has them, the others give None. Collective.

    `done` is told, on rank 0, the places in `requests` of each batch, their results and its latency, and says whether to stop, since
    nobody wants more; `watch` is rank 0's.
    `keep`: return all results as well. `beside`: what they hold besides the answer of the head: "last_hidden_state", and "logits" of a
    model that fills masks.
    A batch's latency runs from its input in memory to its answers in memory, on rank 0.
    Return what is in use at the end, and what happened.
    """
    world = ready.machine.world
    every: list[int] = world.from_root([request.rows for request in requests] if requests is not None else None)
    course = _Course(ready, every, batches(every, batch_rows, ready.spec.hidden), repeat)
    if requests is None:
        course.follow()
    else:
        course.lead(requests, beside, done, watch or Steady(), keep)
    outcome = course.outcome
    outcome.seconds = world.gather_matrix(course.last_steps())
    emulation, before = ready.machine.emulation, course.before
    facts = {
        "host": host_name(),
        "threads": course.ready.engine.threads,
        "emulated_board": ready.machine.emulation.said,
        "overruns": (emulation.overruns - before.overruns) / max(1, emulation.calls - before.calls),
        "late_seconds": emulation.late_seconds - before.late_seconds,
        "weight_bytes": course.ready.engine.weight_bytes,
        "peak_resident_bytes": peak_resident_bytes(),
    }
    outcome.facts = world.gather_all(facts)
    return course.ready, outcome


class _Course:
    """The batches of one job, and where it stands."""

    def __init__(self, ready: Ready, every: list[int], parts: list[list[int]], repeat: int) -> None:
        self.ready, self.every, self.parts, self.total = ready, every, parts, repeat * len(parts)
        self.outcome = Outcome([], [], [], None, [[every[index] for index in part] for part in parts])
        self.steps: deque[np.ndarray] = deque(maxlen=KEPT)
        self.orders = Orders(ready.machine.world, ready.machine.exchanges.pause)
        self.number, self.enough = 0, False
        self._arrange()

    def _arrange(self) -> None:
        """Get ready for the batches under the present plan."""
        engine = self.ready.engine
        engine.prepare([self.every[index] for index in part] for part in self.parts)
        self.computing = [place for place, step in enumerate(engine.program) if isinstance(step, Compute)]
        self.steps.clear()

    def last_steps(self) -> np.ndarray:
        return np.array(self.steps) if self.steps else np.zeros((0, len(self.ready.program)))

    def _lengths(self) -> list[int]:
        return [self.every[index] for index in self.parts[self.number % len(self.parts)]]

    def _short(self) -> bool:
        """Tell whether the first batch is so short that it is answered once more before, to warm up; all ranks tell the same."""
        plan = self.ready.plan
        if not self.parts or plan.predicted_seconds is None:
            return False
        return plan.predicted_seconds * sum(self._lengths()) / plan.planned_rows <= WARM_SECONDS

    def _run(self) -> float:
        """Have a part in one batch; return the seconds that this rank computed."""
        self.ready.engine.run(self._lengths(), None)
        return self._ran()

    def _ran(self) -> float:
        engine = self.ready.engine
        self.steps.append(engine.seconds.copy())
        self.number += 1
        return float(engine.seconds[self.computing].sum())

    # rank 0

    def lead(self, requests: Sequence[Request], beside: Collection[str], done: Done, watch: Watch, keep: bool) -> None:
        outcome, weights = self.outcome, RootWeights(self.ready.store)
        if self._short():
            self._answered(requests, self.parts[0], weights, beside)
        self.before = copy(self.ready.machine.emulation)  # what it counted before the first batch
        pulse = Pulse(self.ready.machine, self.ready.spec)
        while self.number < self.total and not self.enough:
            order = watch.next(self.total - self.number)
            self.orders.give(order)
            if order["do"] == "swap":
                watch.swapped(*self._swap(order))
            elif order["do"] == "links":
                begin = time.perf_counter()
                found = self._links(order)
                watch.linked(found, time.perf_counter() - begin)
            else:
                first, lengths, compute = self.number, [], []
                for _ in range(order["count"]):
                    if not self.number % len(self.parts):
                        outcome.results = [{}] * len(self.every)
                    lengths.append(self._lengths())
                    compute.append(self._lead_one(requests, weights, beside, done, keep))
                watch.answered(first, lengths, outcome.latencies[first:], compute)
                if order.get("pulse") and self.ready.engine.rests_alone and pulse.due():
                    watch.heard(0, {"pulse": pulse.factor()})
            for rank, facts in self.orders.reports():
                watch.heard(rank, facts)
        self.orders.give({"do": "end"})
        self.orders.close()
        outcome.decisions = watch.decisions()

    def _lead_one(self, requests: Sequence[Request], weights: RootWeights, beside: Collection[str], done: Done, keep: bool) -> float:
        part, lengths = self.parts[self.number % len(self.parts)], self._lengths()
        begin = time.perf_counter()
        hidden, results = self._answered(requests, part, weights, beside)
        compute = self._ran()
        for index, at, result in zip(part, np.cumsum([0, *lengths]), results):
            if "last_hidden_state" in beside:
                result["last_hidden_state"] = hidden[at : at + self.every[index]].copy()
            if keep:
                self.outcome.results[index] = result
        self.outcome.latencies.append(time.perf_counter() - begin)
        self.outcome.rows.append(sum(lengths))
        self.enough = bool(done(part, results, self.outcome.latencies[-1])) or self.enough
        return compute

    def _answered(
        self, requests: Sequence[Request], part: Sequence[int], weights: RootWeights, beside: Collection[str]
    ) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """Return the last hidden state of the requests in `part` and their answers."""
        spec, batch = self.ready.spec, [requests[index] for index in part]
        arrays = {key: np.concatenate([request.arrays[key] for request in batch]) for key in batch[0].arrays}
        hidden = self.ready.engine.run([request.rows for request in batch], embed(spec, weights, arrays))
        assert hidden is not None
        return hidden, apply_head(spec, weights, self.ready.store.files, hidden, batch, "logits" in beside)

    # the others

    def follow(self) -> None:
        if self._short():
            self.ready.engine.run(self._lengths(), None)
        self.before = copy(self.ready.machine.emulation)
        pulse = Pulse(self.ready.machine, self.ready.spec)
        while True:
            order = self.orders.take(idle=not self.ready.engine.takes_part)
            if order["do"] == "end":
                break
            if order["do"] == "swap":
                self._swap(order)
            elif order["do"] == "links":
                self._links(order)
            elif self.ready.engine.takes_part:
                first = self.number
                compute = [self._run() for _ in range(order["count"])]
                self.orders.report({"number": first, "compute": compute})
            else:
                for _ in range(order["count"]):
                    self._run()
                if order.get("pulse") and self.ready.engine.rests_alone and pulse.due():
                    self.orders.report({"pulse": pulse.factor()})
        self.orders.close()

    # all together

    def _swap(self, order: Mapping[str, Any]) -> tuple[float, float]:
        """Go on with another plan; return the seconds that this took and those of them that the weights did."""
        begin = time.perf_counter()
        with self.ready.machine.world.patience.slower():
            plan: Plan = plans.from_json(order["plan"])
            self.ready = swap(self.ready, plan, make_room=True)
            loaded = max(self.ready.machine.world.gather_all(time.perf_counter() - begin))
            self._arrange()
            self.ready.machine.world.barrier()
        return time.perf_counter() - begin, loaded

    def _links(self, order: Mapping[str, Any]) -> list[dict[str, float]]:
        machine = self.ready.machine
        found = probe.links_again(machine.world, [tuple(pair) for pair in order["pairs"]], order["sizes"], order["ahead"])
        return machine.world.gather_all({str(peer): rate for peer, rate in found.items()})


def peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process: what cannot be dropped and read from a file again."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
