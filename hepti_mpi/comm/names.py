"""Whether two names are one machine: addresses, aliases, domains, case, `user@`, and what this machine itself is called.

Knows the resolver and this machine's interfaces; does not know hostfiles, ssh or MPI. A resolver that does not answer within
LOOK_UP_SECONDS is not waited for: the name is then judged by its letters.
"""

import queue
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

LOOK_UP_SECONDS = 1.5  # for all names of a call together
AGAIN_SECONDS = 10.0  # after which a name that nobody knew, or nobody said anything about, is looked up once more
AT_ONCE = 64
LOOPBACK = "loopback"  # stands for every address that means the machine itself, wherever it is used
Address = IPv4Address | IPv6Address


def bare(name: str) -> str:
    """Return a name without user, brackets and the root's dot, in small letters."""
    return name.rpartition("@")[2].strip("[]").rstrip(".").lower()


def address(name: str) -> Address | None:
    """Return the address that a name is, None for other names."""
    try:
        found = ip_address(bare(name))
    except ValueError:
        return None
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found


def short(name: str) -> str:
    """Return a name without its domain, in small letters; an address as it is.

    >>> short("pi@Pi4-1.local"), short("192.168.1.11")
    ('pi4-1', '192.168.1.11')
    """
    return bare(name) if address(name) else bare(name).partition(".")[0]


def is_here(name: str) -> bool:
    """Tell whether a name or an address means this machine."""
    plain, own = bare(name), bare(socket.gethostname())
    if plain in ("localhost", own, short(own)):
        return True
    found = addresses(name)
    return _is_own(found) if found else address(name) is None and short(plain) == short(own)


def is_same(one: str, other: str) -> bool:
    """Tell whether two names mean one machine."""
    if bare(one) == bare(other):
        return True
    if is_here(one) or is_here(other):
        return is_here(one) and is_here(other)
    first, second = addresses(one), addresses(other)
    if first and second:
        return not set(first).isdisjoint(second)
    if address(one) or address(other):
        return False
    return short(one) == short(other) and ("." not in bare(one) or "." not in bare(other))  # a domain that the resolver does not know


def own_addresses() -> tuple[str, ...]:
    """Return the addresses by which others may reach this machine: of all interfaces, but those that mean something else elsewhere."""
    return tuple(sorted(text for text in _own() if not (found := ip_address(text)).is_loopback and not found.is_link_local))


def namesakes(every: Sequence[tuple[str, Sequence[str], int]]) -> tuple[int, int] | None:
    """Return two ranks that are on two machines with one name, which MPI takes for one: it waits for ever for memory that they would share.
    `every`: of each rank the name and the addresses of its host, and how many ranks its launcher has started there.

    >>> namesakes([("pi", ["10.0.0.1", "172.17.0.1"], 1), ("a", ["10.0.0.3"], 1), ("pi", ["10.0.0.2", "172.17.0.1"], 1)])
    (0, 2)
    >>> namesakes([("pi", ["10.0.0.1"], 2), ("pi", ["10.0.0.1", "fd00::1"], 2)]), namesakes([("a", [], 1), ("b", [], 1)])
    (None, None)
    """
    hosts, first = [host for host, *_ in every], dict[str, int]()
    for rank, (host, addresses, local) in enumerate(every):
        other = first.setdefault(host, rank)
        if addresses and every[other][1] and addresses != every[other][1] and hosts.count(host) > local:
            return other, rank
    return None


def _is_own(found: Iterable[str]) -> bool:
    return any(one == LOOPBACK or one in _own() for one in found)


@cache
def _own() -> frozenset[str]:
    """Return the addresses of this machine's interfaces, as the kernel's tables have them."""
    return frozenset(_local(_text("/proc/net/fib_trie"), _text("/proc/net/if_inet6")))


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # no such protocol
        return ""


def _local(trie: str, inet6: str) -> Iterable[str]:
    """Yield the addresses of the tables: in that of IPv4 "|-- ADDRESS" stands above "/32 host LOCAL"."""
    last = ""
    for line in trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            yield last
    for line in inet6.splitlines():
        yield str(IPv6Address(bytes.fromhex(line.split()[0])))


# the resolver, which may be slow, or silent


class _Answer:
    """What is known of a name: `found`, and since when; `known` once somebody answered."""

    def __init__(self) -> None:
        self.since, self.found = time.monotonic(), ()  # type: tuple[float, tuple[str, ...]]
        self.known = threading.Event()

    def is_stale(self) -> bool:
        return not self.found and time.monotonic() > self.since + AGAIN_SECONDS


_ANSWERS: dict[str, _Answer] = {}


def addresses(name: str) -> tuple[str, ...]:
    """Return the addresses of a name, none where nobody knows it; those of the loopback as LOOPBACK."""
    look_up([name])
    return _ANSWERS[bare(name)].found


def look_up(names: Iterable[str]) -> None:
    """Ask for all names at once; what is said is kept."""
    every = list(dict.fromkeys(map(bare, names)))
    wanted = [plain for plain in every if plain not in _ANSWERS or _ANSWERS[plain].is_stale()]
    asked: queue.SimpleQueue[tuple[str, _Answer]] = queue.SimpleQueue()
    for plain in wanted:
        _ANSWERS[plain] = _Answer()
        asked.put((plain, _ANSWERS[plain]))
    end = time.monotonic() + LOOK_UP_SECONDS
    for _ in range(min(AT_ONCE, len(wanted))):
        threading.Thread(target=_ask, args=(asked, end), name="look up", daemon=True).start()  # nothing waits for one that hangs
    for answer in (_ANSWERS[plain] for plain in every):  # one that somebody else asked for is waited for as long
        answer.known.wait(max(0.0, answer.since + LOOK_UP_SECONDS - time.monotonic()))


def _ask(asked: "queue.SimpleQueue[tuple[str, _Answer]]", end: float) -> None:
    while time.monotonic() < end:
        try:
            plain, answer = asked.get_nowait()
        except queue.Empty:
            return
        try:
            every = [address(str(item[4][0])) for item in socket.getaddrinfo(plain, None, type=socket.SOCK_STREAM)]
            answer.found = tuple(dict.fromkeys(LOOPBACK if one.is_loopback or one.is_unspecified else str(one) for one in every if one))
        except (OSError, UnicodeError):
            pass
        answer.known.set()
