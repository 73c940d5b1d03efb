"""The command that was typed, whole, for sentences that advise to type it again. Knows how this job was started; not what is wrong."""

import shlex

from hepti_mpi.comm.channel import state_path
from hepti_mpi.comm.launcher import command_line
from hepti_mpi.wording import counted


def with_ranks(count: int) -> str:
    """Return with what this job is started as one of so many ranks."""
    if state_path():  # nobody has typed what a supervisor started
        return f"with a hostfile of {counted(count, 'slots')}"
    words = command_line(count)
    return f"with: {shlex.join(words)}" if words else f"with the same command and -n {count} behind mpirun"
