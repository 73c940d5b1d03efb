"""Commands as people start them: on a terminal of so many columns."""

import os
import pty
import re
import subprocess
import sys

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
PROGRAM = [sys.executable, "-m", "hepti_mpi"]


def environment(**more):
    """Return that of a command which finds this checkout from any folder."""
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    return kept | {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path), **more}


def on_a_terminal(command, columns=80, cwd=None, program=PROGRAM, **more):
    """Run a command of a program whose standard output and error are a terminal; return its exit code and what appears there."""
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", str(columns)], stdin=slave, check=True)
    process = subprocess.Popen([*program, *command], stdin=slave, stdout=slave, stderr=slave, env=environment(**more), cwd=cwd)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(), shown.decode()


def lines_of(shown, columns):
    """Return the lines that a terminal of so many columns has when it was shown this: a letter behind the last column waits for the next,
    which begins a line."""
    lines, column = [""], 0
    for letter in re.findall(r"\x1b\[K|[^\x1b]", shown):
        if letter == "\r":
            column = 0
        elif letter == "\n":
            lines, column = [*lines, ""], 0
        elif letter == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            if column == columns:
                lines, column = [*lines, ""], 0
            lines[-1] = lines[-1][:column].ljust(column) + letter + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]
