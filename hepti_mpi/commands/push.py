"""The command that copies a store, or each rank's file, to the hosts ahead of a run."""

import hashlib
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hepti_mpi.commands.options import FILE, words_options
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.wording import counted

if TYPE_CHECKING:
    from hepti_mpi.cluster.hosts import Host

AT_ONCE = 4  # hosts
# of a shell: what it reads gets the name $path when its hash is $hash, unless a file of that hash is there
KEEP = """
mkdir -p "$(dirname "$path")" || exit 1
same() { [ "$(sha256sum <"$1" 2>/dev/null)" = "$hash  -" ]; }
if same "$path"; then echo there; exit 0; fi
part="$path.part.$$"
trap 'rm -f "$part"' EXIT
cat >"$part" && same "$part" && mv "$part" "$path" && echo copied
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
    from concurrent.futures import ThreadPoolExecutor

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
    with ThreadPoolExecutor(AT_ONCE) as pool:
        failed = [host.name for host, sound in zip(hosts, pool.map(_push, hosts, files, [hashes[path] for path in files])) if not sound]
    if failed:
        look = f"look with: python -m hepti_mpi doctor {shlex.quote(str(hostfile))}"
        raise HeptiError(f"{len(failed)} of {len(hosts)} hosts lack it: {', '.join(failed)}; {look}")


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(1 << 20):
            found.update(content)
    return found.hexdigest()


def _push(host: "Host", path: Path, found: str) -> bool:
    """Copy a file to a host, say what came of it, and tell whether it is there."""
    from hepti_mpi.cluster.hosts import shell
    from hepti_mpi.errors import reason_of
    from hepti_mpi.reporting.tables import size

    if host.here:
        SCREEN.show(f"{host.name}: this machine, which has it")
        return True
    line = f"path={shlex.quote(str(path.absolute()))} hash={found}{KEEP}"
    try:
        with open(path, "rb") as file:
            done = shell(host, line, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        SCREEN.warn(f"{host.name}: ssh cannot be called: {reason_of(error)}")
        return False
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        SCREEN.warn(f"{host.name}: {said[:300]}")
        return False
    what = "is there already" if "there" in done.stdout else f"copied, {size(path.stat().st_size)}"
    SCREEN.show(f"{host.name}: {path} {what}")
    return True
