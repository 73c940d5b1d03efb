"""With how many threads the sessions of this process compute, and whether they share them: said once, before the first one is made.

Knows no session: a rank that rests makes none, and does not import ONNX Runtime.
"""

from dataclasses import dataclass

from hepti_mpi.wording import counted


@dataclass
class Pool:
    """What was said. `threads`: None where nobody did; `shared`: all sessions have the same ones, else each has as many as it is made with.
    `in_use`: a session was made."""

    threads: int | None = None
    shared: bool = False
    in_use: bool = False


POOL = Pool()


def configure(threads: int, one_pool: bool = True) -> None:
    """Give all sessions of this process one allocator and, with `one_pool`, one thread pool of `threads`: it cannot be changed any more.
    Else each session has threads of its own, as many as it is made with. Counts from the first session on, and cannot be changed then.
    """
    if POOL.in_use and (POOL.threads, POOL.shared) != (threads, one_pool):
        raise ValueError(f"this process already runs ONNX Runtime with {counted(POOL.threads or 0, 'threads')}")
    POOL.threads, POOL.shared = threads, one_pool
