"""What a service counts, as Prometheus reads it. Knows names and numbers; does not know what they are used for."""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

BUCKETS = tuple(step * 10.0**power for power in range(-3, 3) for step in (1, 2, 5))
ROWS = tuple(2.0**power for power in range(13))
SHARES = ("heads", "columns", "rows")


class Meters:
    """Counters of a front and of the job behind it. `look` is asked for {"waiting", "waiting_rows", "ready", "starts", "tokens", "lost",
    "hosts"}."""

    def __init__(self, look: Callable[[], Mapping[str, float]]) -> None:
        disable_created_metrics()
        own = self.registry = CollectorRegistry()
        self.look = look
        self.requests = Counter("hepti_request_count", "HTTP requests.", ["route", "status"], registry=own)
        said = "From a request to its answer."
        self.duration = Histogram("hepti_request_duration_seconds", said, ["route"], buckets=BUCKETS, registry=own)
        self.queued = Histogram("hepti_request_queue_duration_seconds", "Until it was begun.", buckets=BUCKETS, registry=own)
        self.inputs = Counter("hepti_inputs", "Inputs answered.", registry=own)
        self.rows = Counter("hepti_rows", "Rows (tokens, patches) of the inputs answered.", registry=own)
        self.batches = Histogram("hepti_batch_seconds", "Latency of a batch.", buckets=BUCKETS, registry=own)
        self.batch_rows = Histogram("hepti_batch_rows", "Rows of a batch.", buckets=ROWS, registry=own)
        self.switches = Counter("hepti_plan_switches", "Changes of the plan.", registry=own)
        self.compute = Gauge("hepti_rank_compute_seconds", "What a rank computed in its last batch.", ["rank", "host"], registry=own)
        self.teams = [Gauge("hepti_rank_rows_per_second", "Rows that the teams of a rank answer.", ["rank", "host"], registry=own),
                      Gauge("hepti_rank_inputs", "Inputs that the teams of a rank have.", ["rank", "host"], registry=own)]  # fmt: skip
        self.info = Gauge("hepti_plan_info", "The plan in use: 1.", ["strategy", "hash"], registry=own)
        self.shares = [Gauge(f"hepti_rank_{name}", f"The part of the {name} that a rank has.", ["rank", "host"], registry=own)
                       for name in SHARES]  # fmt: skip
        looks = {"waiting": ("hepti_queue_size", "Inputs that wait."), "waiting_rows": ("hepti_queue_rows", "Rows that wait."),
                 "ready": ("hepti_ready", "1 while there is a job that answers."), "starts": ("hepti_job_starts", "Starts of the job."),
                 "tokens": ("hepti_generated_tokens", "Tokens of text made since the service began."),
                 "lost": ("hepti_hosts_lost", "Hosts that are left out."), "hosts": ("hepti_hosts", "Hosts.")}  # fmt: skip
        self.looked = {name: Gauge(*words, registry=own) for name, words in looks.items()}
        self.hosts: list[str] = []

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, status).inc()
        self.duration.labels(route).observe(seconds)

    def heard(self, record: Mapping[str, Any]) -> None:
        """Count what rank 0 tells (serving.remote)."""
        if record["kind"] in ("ready", "planned"):
            self._planned(record["plan"])
            self.switches.inc(record["kind"] == "planned")
        elif record["kind"] == "answered":
            self.inputs.inc(len(record["places"]))
            self.rows.inc(record["rows"])
            self.batches.observe(record["seconds"])
            self.batch_rows.observe(record["rows"])
            for rank, seconds in record["computed"].items():
                self.compute.labels(rank, self.hosts[int(rank)]).set(seconds)
        elif record["kind"] == "teams":
            for gauge, name in zip(self.teams, ("rows_per_second", "inputs")):
                gauge.clear()
                for team in record["teams"]:  # a rank may be several teams
                    for rank in team["ranks"]:
                        gauge.labels(rank, self.hosts[rank]).inc(team[name])
        elif record["kind"] == "lost":
            self.teams[1].clear()

    def _planned(self, plan: Mapping[str, Any]) -> None:
        self.hosts = list(plan["hosts"])
        for gauge in (self.info, self.compute, *self.teams, *self.shares):
            gauge.clear()
        self.info.labels(plan.get("strategy", ""), plan.get("hash", "")).set(1)
        for name, gauge in zip(SHARES, self.shares):
            for rank, count in enumerate(plan.get(name) or ()):
                gauge.labels(rank, self.hosts[rank]).set(count)

    def page(self) -> bytes:
        """Return all of it."""
        for name, value in self.look().items():
            self.looked[name].set(value)
        return generate_latest(self.registry)
