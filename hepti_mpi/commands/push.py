"""The command that copies a store, or each rank's file, to the hosts ahead of a run."""

import hashlib
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hepti_mpi.commands.meter import Meter, meanwhile
from hepti_mpi.commands.options import FILE, words_options
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.reporting.tables import size
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.cluster.hosts import Host

AT_ONCE = 4  # hosts
LOOK_SECONDS = 0.5  # between two looks at how far it is
# of a shell: what it reads gets the name $path when its hash is $hash, unless a file of that hash is there
KEEP = """
mkdir -p "$(dirname "$path")" || exit 1
same() { [ "$(sha256sum 2>/dev/null <"$1")" = "$hash  -" ]; }
if same "$path"; then echo there; exit 0; fi
part="$path.part.$$"
trap 'rm -f "$part"' EXIT
cat >"$part" || exit 1
same "$part" || { echo "it arrived damaged, or not whole: push it again" >&2; exit 1; }
mv "$part" "$path" && echo copied
"""


@click.command()
@click.argument("store", type=FILE)
@click.argument("hostfile", type=FILE)
@words_options(has_document=False)
def push(store: Path, hostfile: Path) -> None:
    """Copy a store to the hosts of a hostfile over ssh, under the same path; of a folder of rank files each host gets its own.

    \b
    Examples:
      python -m hepti_mpi push weights/bert-large.h5 hostfiles/pi4.txt
      python -m hepti_mpi push weights/bert-large hostfiles/pi4.txt
    """
    from hepti_mpi.cluster.hosts import read_hosts
    from hepti_mpi.errors import HeptiError, StoreError
    from hepti_mpi.weights.places import FIRST_PART, no_store
    from hepti_mpi.weights.store import Store

    hosts = read_hosts(hostfile)
    if not (store / FIRST_PART).is_file() and (what := no_store(store)) is not None:
        raise StoreError(what)
    several = [host.name for host in hosts if host.slots != 1]
    if store.is_dir() and several:
        raise HeptiError(f"push copies one file to a host, and {hostfile} gives {several[0]} several ranks, or one for each core: give it "
                         "slots=1, or push a store")  # fmt: skip
    files = [store / f"rank{rank:02d}.h5" if store.is_dir() else store for rank in range(len(hosts))]
    hashes = dict.fromkeys(files, "")
    for path in hashes:
        if store.is_dir() and not path.exists():
            each = f"{hostfile} has {counted(len(hosts), 'hosts')}, a rank on each"
            raise StoreError(f"{path} not found: {each}; cut as many files with slice --plan")
        Store(path).close()  # what is no store is not sent around
        hashes[path] = _sha256(path)
    bytes_ahead = sum(path.stat().st_size for host, path in zip(hosts, files) if not host.here)
    with meanwhile(f"copying {store}", bytes_ahead, count=size) as meter:
        failed = _failed(hosts, files, hashes, meter)
    if failed:
        look = f"look with: python -m hepti_mpi doctor {shlex.quote(str(hostfile))}"
        raise HeptiError(f"{len(failed)} of {len(hosts)} hosts lack it: {', '.join(failed)}; {look}")


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with meanwhile(f"reading {path}", path.stat().st_size, count=size) as meter, open(path, "rb") as file:
        while content := file.read(1 << 20):
            found.update(content)
            meter.advance(len(content))
    return found.hexdigest()


def _failed(hosts: "Sequence[Host]", files: Sequence[Path], hashes: Mapping[Path, str], meter: Meter) -> list[str]:
    """Copy to each host its file, some at once; return the names of those that lack it still."""
    from concurrent.futures import ThreadPoolExecutor, wait

    sources: dict[str, FileIO] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pushed = [pool.submit(_push, host, path, hashes[path], sources) for host, path in zip(hosts, files)]
        are_ahead = True
        while are_ahead:
            are_ahead = bool(wait(pushed, LOOK_SECONDS).not_done)
            sent = [path.stat().st_size if done.done() else _read(sources.get(host.name))
                    for host, path, done in zip(hosts, files, pushed) if not host.here]  # fmt: skip
            meter.advance(sum(sent) - meter.done)
    return [host.name for host, done in zip(hosts, pushed) if not done.result()]


def _read(source: FileIO | None) -> int:
    """Return how many bytes of a file have been read, by ssh too, which reads on from the same place."""
    try:
        return source.tell() if source is not None else 0
    except ValueError:  # it is closed by now
        return 0


def _push(host: "Host", path: Path, found: str, sources: dict[str, FileIO]) -> bool:
    """Copy a file to a host, say what came of it, and tell whether it is there. What copies ends with this process, and reads from what is
    put into `sources` meanwhile."""
    from hepti_mpi.cluster.hosts import shell
    from hepti_mpi.comm import interrupts
    from hepti_mpi.comm.launcher import ended_with_this
    from hepti_mpi.errors import reason_of

    if host.here:
        SCREEN.show(f"{host.name}: this machine, which has it")
        return True
    line = f"path={shlex.quote(str(path.absolute()))} hash={found}{KEEP}"
    try:
        with open(path, "rb", buffering=0) as sources[host.name]:
            done = shell(host, line, stdin=sources[host.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                         preexec_fn=ended_with_this())  # fmt: skip
    except OSError as error:
        SCREEN.warn(f"{host.name}: ssh cannot be called: {reason_of(error)}")
        return False
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if not interrupts.arrived():  # ssh hears Ctrl-C too
            SCREEN.warn(f"{host.name}: {said[:300]}")
        return False
    what = "is there already" if "there" in done.stdout else f"copied, {size(path.stat().st_size)}"
    SCREEN.show(f"{host.name}: {path} {what}")
    return True
