"""Lines that people type into a talk: with keys on a terminal of its own, whole under mpirun."""

import os
import pty
import sys
from subprocess import Popen

from terminals import environment

from hepti_mpi.commands import chat, terminal

CODE = """
from hepti_mpi.commands.terminal import has_keys, typed
print(has_keys())
for line in typed("> "):
    print(ascii(line))
print("the end")
"""


def test_arrows_earlier_lines_and_pasted_ones():
    typed = ["w1 Ü漢w2\x1b[D\x1b[D\x7f!\n", "\x1b[A\x1b[A?\n", "\x1b[200~w3\nw4\x1b[201~\n", "\n", "\4"]
    master, slave = pty.openpty()
    with Popen([sys.executable, "-c", CODE], stdin=slave, stdout=slave, stderr=slave, env=environment(INPUTRC="/dev/null")) as process:
        os.close(slave)
        shown, left = "", list(typed)
        try:
            while part := os.read(master, 1 << 16).decode(errors="replace"):
                shown += part
                if left and shown.endswith("> "):
                    os.write(master, left.pop(0).encode())
        except OSError:  # the other end is closed
            pass
        os.close(master)
    assert process.returncode == 0 and "the end" in shown, shown
    assert [line for line in shown.replace("\r", "\n").splitlines() if line.startswith(("'", "True"))] == [
        "True", ascii("w1 Ü!w2"), ascii("w1 Ü!w2?"), ascii("w3\nw4"), "''"]  # fmt: skip


def test_keys_that_mpirun_hands_on_are_not_sent_to_the_model(monkeypatch, capfd):
    """Its terminal puts what an arrow sends into the line, and an arrow alone would have ended the talk."""
    monkeypatch.setattr(terminal, "path", lambda descriptor: "/dev/pts/none")
    lines = iter(["w1\x1b[D\x1b[Dw2\n", "\x1b[A\n", "w1 w2\n"])
    assert chat._line(chat._asked(lines)) == "w1 w2"
    assert capfd.readouterr().err.count("was not sent") == 2
