"""What a long run does, as a file for Prometheus (its node exporter's textfile collector).

Hears of answers, and what rank 0's watch hears; decides nothing. Counters begin again when a supervised run is started again, which
Prometheus takes for a reset.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, write_to_textfile

from hepti_mpi.documents import behind_links, check_place
from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.program import plan as plans
from hepti_mpi.program.plan import Plan, Wire
from hepti_mpi.serving.request import Answered
from hepti_mpi.tuning.watch import Overheard, Watch

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

EVERY_SECONDS = 5.0
BUCKETS = tuple(step * 10.0**power for power in range(-3, 2) for step in (1, 2, 5))
SHARES = ("heads", "columns", "rows")


def check_path(path: Path) -> None:
    """Refuse a file that the collector would not read or that could not be written. Raises InputError."""
    if path.suffix != ".prom":
        raise InputError(f"metrics {path} does not end in .prom: the textfile collector reads no others")
    check_place(path, InputError, "metrics ")


class Metered:
    """What a run counts, in a file at `path` that is written every few seconds; `left`: batches that there are."""

    def __init__(self, path: Path, model: str, left: int, say: Callable[[str], None]) -> None:
        """Raises InputError when the file cannot be written."""
        check_path(path)
        self.path, self.model, self.say = path, model, say
        disable_created_metrics()
        registry = self.registry = CollectorRegistry()
        self.batches = Counter("hepti_batches", "Batches answered.", registry=registry)
        self.rows = Counter("hepti_rows", "Rows (tokens, patches) of the requests answered.", registry=registry)
        self.requests = Counter("hepti_requests", "Requests answered.", registry=registry)
        self.seconds = Histogram("hepti_batch_seconds", "Latency of a batch.", buckets=BUCKETS, registry=registry)
        self.left = Gauge("hepti_batches_left", "Batches not yet answered.", registry=registry)
        self.last = Gauge("hepti_last_answer_timestamp_seconds", "When the last batch was answered.", registry=registry)
        self.running = Gauge("hepti_running", "1 while the run answers, 0 when it has ended.", registry=registry)
        self.info = Gauge("hepti_plan_info", "The plan in use: 1.", ["model", "strategy", "hash"], registry=registry)
        self.written, self.refused = float("-inf"), False
        self.running.set(1)
        self.left.set(left)

    def planned(self, strategy: str, plan_hash: str) -> None:
        """Note which plan is in use."""
        self.info.clear()
        self.info.labels(self.model, strategy, plan_hash).set(1)
        self.write(now=True)

    def write(self, now: bool = False) -> None:
        """Write the file, unless that was a moment ago."""
        if self.refused or not now and time.monotonic() < self.written + EVERY_SECONDS:
            return
        more = "" if self.written < 0 else " any more"
        self.written = time.monotonic()
        try:
            write_to_textfile(str(behind_links(self.path)), self.registry)
        except OSError as error:
            self.refused = True  # answers are worth more than numbers about them
            self.say(f"metrics {self.path} cannot be written{more}: {reason_of(error)}")

    def event(self, event: Answered) -> None:
        """Hear of answers (sink.Listener)."""
        self.batches.inc()
        self.requests.inc(len(event.requests))
        self.rows.inc(sum(request.rows for request in event.requests))
        self.seconds.observe(event.seconds)
        self.left.dec()
        self.last.set_to_current_time()
        self.write()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last state of a run that has ended."""
        self.running.set(0)
        if kind is None:
            self.left.set(0)
        self.write(now=True)


class MeteredWatch(Overheard):
    """A watch over a plan of which the counters of a run hear."""

    def __init__(self, watch: Watch, metered: Metered, plan: Plan) -> None:
        super().__init__(watch)
        self.metered, registry = metered, metered.registry
        self.switches = Counter("hepti_plan_switches", "Changes of the plan.", registry=registry)
        self.predicted = Gauge("hepti_batch_predicted_seconds", "What the plan promises, for the rows it was made for.", registry=registry)
        self.compute = Gauge("hepti_rank_compute_seconds", "What a rank computed in its last batch.", ["rank", "host"], registry=registry)
        self.shares = [Gauge(f"hepti_rank_{name}", f"The part of the {name} that a rank has.", ["rank", "host"], registry=registry)
                       for name in SHARES]  # fmt: skip
        self._planned(plan)

    def _planned(self, plan: Plan) -> None:
        self.hosts, self.order = plan.hosts, plan
        self.compute.clear()  # ranks that are left out now compute nothing
        self.predicted.set(plan.predicted_seconds or float("nan"))
        for name, gauge in zip(SHARES, self.shares):
            for rank, count in enumerate(getattr(plan, name)):
                gauge.labels(rank, plan.hosts[rank]).set(count)
        self.metered.planned(plan.strategy, plan.hash)

    def next(self, left: int | None) -> dict[str, Any]:
        order = super().next(left)
        if order["do"] == "swap":
            self.order = plans.from_json(order["plan"])
        return order

    def answered(self, number: int, lengths: Sequence[Sequence[int]], seconds: Sequence[float], compute: Sequence[float]) -> None:
        self._computed(0, compute)
        super().answered(number, lengths, seconds, compute)

    def heard(self, rank: int, facts: dict[str, Any]) -> None:
        self._computed(rank, facts.get("compute", ()))
        super().heard(rank, facts)

    def _computed(self, rank: int, compute: Sequence[float]) -> None:
        if compute:
            self.compute.labels(rank, self.hosts[rank]).set(compute[-1])

    def swapped(self, seconds: float, load_seconds: float, wire: Wire) -> None:
        self.switches.inc()
        self._planned(self.order)
        super().swapped(seconds, load_seconds, wire)
