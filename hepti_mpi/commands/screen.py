"""What a command shows: results on standard output, what happens meanwhile on standard error. Computes nothing.

On a terminal both are coloured, plans are drawn and tables are made to fit; elsewhere they are plain text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hepti_mpi.commands import terminal
from hepti_mpi.commands.terminal import ERR, OUT, Flow
from hepti_mpi.documents import json_line

if TYPE_CHECKING:
    from hepti_mpi.engine.machine import Machine
    from hepti_mpi.program.plan import Plan


class Screen:
    """What this process shows. `quiet`: results only. `json`: standard output is JSON lines only."""

    def __init__(self) -> None:
        self.quiet = self.json = False
        self.flow = Flow(None)  # of the text that is shown as it grows

    @property
    def width(self) -> int | None:
        """Characters in a line of the terminal that results are shown on; None where there is no terminal."""
        return terminal.width(OUT)

    @property
    def is_read(self) -> bool:
        """Whether somebody still reads the results."""
        from hepti_mpi.comm.launcher import reader_is_gone

        if OUT not in terminal.closed and reader_is_gone(OUT):
            terminal.close(OUT)
        return OUT not in terminal.closed

    def say(self, sentence: str) -> None:
        """Tell what happens."""
        if not self.quiet:
            self.warn(sentence)

    def warn(self, sentence: str) -> None:
        """Tell what went wrong, whatever was asked for."""
        terminal.write(ERR, self.folded(sentence, ERR))

    def folded(self, text: str, descriptor: int = ERR) -> str:
        """Return text without words that are broken at the edge of a terminal."""
        from hepti_mpi.reporting.tables import folded

        return folded(text, terminal.width(descriptor))

    def show(self, text: str) -> None:
        """Show tables and the like to people."""
        if not self.quiet:
            self.result(text)

    def result(self, text: str) -> None:
        """Show people what they asked for, also when quiet."""
        if not self.json:
            terminal.write(OUT, self.folded(text, OUT))

    def copied(self, text: str) -> None:
        """Show what is there to be copied into a file: no line of it is broken."""
        if not self.json and not self.quiet:
            terminal.write(OUT, text, plain=True)

    def draw(self, plan: "Plan") -> None:
        """Show who does what: as bars on a terminal, else as numbers."""
        from hepti_mpi.reporting import records

        bars = None
        if terminal.path(OUT) is not None and not self.quiet and not self.json:
            from hepti_mpi.reporting.drawing import plan_bars

            bars = plan_bars(plan, terminal.console(OUT).width)
        if bars is None:
            self.show(records.plan_lines(plan, self.width))
        else:
            self.show(records.plan_title(plan))  # by itself: a title of a table is folded within words where the table is narrow
            terminal.write(OUT, bars)

    def answers(self, answers: Sequence[dict[str, Any]]) -> None:
        """Print answers, records of models.tasks.heads.answers: they are the result."""
        from hepti_mpi.reporting.records import answer_line

        for answer in answers:
            if self.json:
                terminal.write(OUT, json_line({"kind": "answer", **answer}), plain=True)
            else:
                self.result(answer_line(answer, self.width))

    def texts(self, records: Sequence[dict[str, Any]]) -> None:
        """Print texts that were generated: they are the result."""
        for record in records:
            if self.json:
                terminal.write(OUT, json_line({"kind": "answer", **record}), plain=True)
            elif "error" in record:
                self.result(f"error: {record['error']}")
            else:
                self.result(f"> {asked_of(record)}\n{record.get('text', record['tokens'])}\n")

    def say_text(self, asked: str | None, text: str, ended: bool) -> None:
        """Show what was added to a text; `asked`: in front of it, where it begins."""
        if asked is not None:
            self.result(f"> {asked}")
            self.flow = Flow(self.width)
        self.part(self.flow.add(text) + (self.flow.end() + "\n\n" if ended else ""))

    def part(self, text: str) -> None:
        """Show a part of a line."""
        if text:
            terminal.write(OUT, text, plain=True, ends=False)

    def document(self, data: dict[str, Any], always: bool = False) -> None:
        """Print a JSON document if one is asked for; `always`: also where it ends the output for people, but not on a terminal, this
        process's or one that it was told of."""
        if self.json or always and not self.quiet and self.width is None:
            terminal.write(OUT, json.dumps(data), plain=True)


def asked_of(record: Mapping[str, Any]) -> str:
    """Return what is shown of the prompt of an answer: a text, or the last message of a talk."""
    asked = record["input"]
    return str(asked if isinstance(asked, str) else asked[-1].get("content"))


SCREEN = Screen()


def say(machine: "Machine") -> Callable[[str], None]:
    """Return what tells a sentence once, on rank 0."""
    return SCREEN.say if machine.world.rank == 0 else lambda sentence: None
