"""The links of a lab: one veth pair a host, from its eth0 to a port of the switch, limited at both ends.

Knows ip and tc. Does not know how the namespaces came about: each is named by the process id of one process in it.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .clusters import NETWORK, Host
from .errors import LabError

SUBNET = f"{NETWORK}.0/24"
SWITCH = "switch"  # the bridge


QUEUE_SECONDS = 0.2  # the longest that a frame waits for its turn
CARRIERS = 70  # priority of the threads that carry frames, above that of boards
BURST_BYTES = 128 * 1024
LEAST_BURST_BYTES = 16 * 1024  # with less, frames are cut and handled one by one, which costs CPU time
CONTROLS, CONTROL = Path("/proc/sys/net/ipv4"), "cubic"  # of Linux as boards have it; BBR, which servers may have, paces and pauses


def carry_first() -> None:
    """Let the kernel's threads that carry frames go before the computing of boards (hepti_mpi.comm.precedence), as cables do.

    They stay so until the machine starts again.
    """
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().startswith("ksoftirqd/"):
                os.sched_setscheduler(int(path.parent.name), os.SCHED_FIFO, os.sched_param(CARRIERS))
        except OSError:  # it has ended, or this is a container that may not
            continue


def send_as_boards() -> None:
    """Let hosts send by the congestion control that boards have, which some machines keep for themselves.

    It stays allowed until the machine starts again.
    """
    allowed = CONTROLS / "tcp_allowed_congestion_control"
    if CONTROL not in (names := allowed.read_text().split()) and CONTROL in _controls():
        allowed.write_text(" ".join([*names, CONTROL]))


def _controls() -> list[str]:
    return (CONTROLS / "tcp_available_congestion_control").read_text().split()


def connect(switch: int, host: Host, process: int, burst_seconds: float | None = None) -> None:
    """Plug a host into the switch and give it its address and rate."""
    _run(switch, ["ip", "-batch", "-"], [
        f"link add {host.port} type veth peer name eth0 address {host.mac} netns {process}",
        f"link set {host.port} master {SWITCH} up",
    ])  # fmt: skip
    _run(process, ["ip", "-batch", "-"], ["link set lo up", f"address add {host.address}/24 dev eth0", "link set eth0 up"])
    if CONTROL in _controls():
        _run(process, ["tee", str(CONTROLS / "tcp_congestion_control")], [CONTROL])
    limit(switch, host, process, host.mbit, burst_seconds)


def disconnect(switch: int, host: Host) -> None:
    """Unplug a host that is being killed; the kernel may have done so already."""
    try:
        _run(switch, ["ip", "link", "delete", host.port])
    except LabError as problem:
        if "Cannot find device" not in str(problem):
            raise


def limit(switch: int, host: Host, process: int, mbit: float, burst_seconds: float | None = None) -> None:
    """Set the rate of a host's link, both ways; see `burst`."""
    size = burst(mbit, burst_seconds)
    rule = f"tbf rate {mbit * 1000:.0f}kbit burst {size} latency {QUEUE_SECONDS * 1000:.0f}ms"
    for namespace, device in ((process, "eth0"), (switch, host.port)):
        _run(namespace, ["ip", "link", "set", device, "gso_max_size", str(min(size, 65536))])  # no packet above the burst
        _run(namespace, ["tc", "qdisc", "replace", "dev", device, "root", *rule.split()])


def burst(mbit: float, seconds: float | None) -> int:
    """Return how many bytes an idle link takes at once, beyond its rate: 128 KiB, or what it carries in `seconds`."""
    return BURST_BYTES if seconds is None else max(LEAST_BURST_BYTES, round(mbit * 1e6 / 8 * seconds))


def cut(switch: int, host: Host) -> None:
    """Let frames from and to a host vanish without a word; its own link stays up."""
    _run(switch, ["ip", "link", "set", host.port, "nomaster"])


def restore(switch: int, host: Host) -> None:
    """Join a cut link to the switch again."""
    _run(switch, ["ip", "link", "set", host.port, "master", SWITCH])


def _run(namespace: int, command: Sequence[str], lines: Sequence[str] = ()) -> None:
    """Run a command in the network of a process, `lines` on its input. Raises LabError with what it says."""
    done = subprocess.run(
        ["nsenter", f"--target={namespace}", "--net", "--", *command], input="\n".join(lines), capture_output=True, text=True
    )
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
