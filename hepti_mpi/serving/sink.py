"""Where answers go: a journal while a run lasts and then its output, or a screen at once. Rank 0's only.

Knows answers and what keeps them; does not know how they were found. What turns results into text and writes it works beside the
engine, in a thread of its own.
"""

import functools
import queue
import shlex
import threading
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from hepti_mpi.comm import interrupts
from hepti_mpi.comm.launcher import command_line, host_name, launched, mpirun_is_here
from hepti_mpi.errors import InputError
from hepti_mpi.serving.answers import Answers
from hepti_mpi.serving.finished import check_not_less, nothing_left, write_signed
from hepti_mpi.serving.journal import Journal, journal_path
from hepti_mpi.serving.outputs import Finished, Tally, check_apart, check_path
from hepti_mpi.serving.request import Question

if TYPE_CHECKING:
    from hepti_mpi.models.tasks.sampling import Chosen

WAITING = 16  # batches that may be answered and not yet written: a disk that is slower than that is waited for
STOP_SECONDS = 0.2


class Screen(Protocol):
    """What shows answers to people or programs."""

    @property
    def is_read(self) -> bool: ...

    def answers(self, answers: Sequence[dict[str, Any]]) -> None: ...


class TextScreen(Screen, Protocol):
    """What shows texts that grow."""

    def texts(self, records: Sequence[dict[str, Any]]) -> None: ...

    def say_text(self, asked: str | None, text: str, ended: bool) -> None: ...


class Event(Protocol):
    """What a step brought: answers to the `requests` at some `places`, and tokens of texts that have `grown` (serving.journal). Work is
    told in rows, `rows` of it and `rows_left` to come: of texts that are written a row is a token."""

    @property
    def requests(self) -> Sequence[Any]: ...
    @property
    def places(self) -> Sequence[int]: ...
    @property
    def finished(self) -> Sequence[Finished]: ...
    @property
    def grown(self) -> Sequence[Any]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def rows(self) -> int: ...
    @property
    def rows_left(self) -> int: ...


class Listener(Protocol):
    """What hears of answers."""

    def event(self, event: Any) -> None: ...


class Sink(Listener, Protocol):
    """What keeps the answers of one run. `known`: places of requests that need no answer; `begun`: what there is of others' texts."""

    known: Collection[int]
    begun: "Mapping[int, Sequence[Chosen]]"

    @property
    def wanted(self) -> bool:
        """Whether somebody will see the answers to come."""

    def begin(self, head: Mapping[str, Any], count: int, refused: Mapping[int, Finished]) -> None:
        """Get ready for the `count` requests of the run of `head`, of which some are refused. Raises InputError."""

    def write(self) -> Tally | None:
        """Put out what was kept; return what became of all inputs, None where somebody else knows. Raises InputError."""

    def kept(self, asked: int) -> str | None:
        """Say what is kept of a run of so many answers should it end now, and what goes on with it; None where somebody else says that."""

    def left(self) -> str:
        """Say what is kept that can be gone on with, as where an error ends the run; "" where nothing is, or somebody else says that."""


class Shown:
    """Answers on a screen, each as soon as those to all inputs before it are known."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.known: Collection[int] = ()
        self.begun: Mapping[int, Sequence[Chosen]] = {}
        self.next, self.waiting, self.answered = 0, dict[int, Finished](), 0
        self.told: list[Finished] = []  # what counts of those that were shown

    @property
    def wanted(self) -> bool:
        return self.screen.is_read

    def begin(self, head: Mapping[str, Any], count: int, refused: Mapping[int, Finished]) -> None:
        self.waiting.update(refused)

    def event(self, event: Event) -> None:
        self.answered += len(event.requests)
        if any(place >= self.next and place not in self.waiting for place in event.places):  # else it was asked again, to measure
            self.waiting.update((place, item) for place, item in zip(event.places, event.finished) if place >= self.next)
        self._show()

    def _show(self) -> None:
        while self.next in self.waiting:
            item = self.waiting.pop(self.next)
            self.screen.answers([item["answer"]])
            self._count(item)

    def _count(self, item: Finished) -> None:
        self.told.append({"truncated": item["answer"].get("truncated")} | ({"error": item["error"]} if "error" in item else {}))
        self.next += 1

    def write(self) -> Tally:
        self._show()
        return Tally.of(self.told)

    def kept(self, asked: int) -> str:
        return unkept(self.answered, asked, "without --output FILE")

    def left(self) -> str:
        return ""


class Spoken(Shown):
    """Texts on a screen in the order of their prompts, the first one that has not ended as it grows."""

    def __init__(self, screen: TextScreen, asked: Sequence[str]) -> None:
        """`asked`: what is shown of each prompt."""
        super().__init__(screen)
        self.pages, self.asked, self.texts, self.begins = screen, asked, dict[int, str](), True

    def event(self, event: Any) -> None:
        for place, text in event.said:
            self.texts[place] = self.texts.get(place, "") + text
        super().event(event)

    def _show(self) -> None:
        while self.next in self.waiting or self.texts.get(self.next):
            item = self.waiting.get(self.next)
            if item is not None and "error" in item:
                self.pages.texts([item["answer"]])
            else:
                self.pages.say_text(self.asked[self.next] if self.begins else None, self.texts.pop(self.next, ""), item is not None)
                self.begins = False
            if item is None:
                return
            self._count(self.waiting.pop(self.next))
            self.begins = True


class Filed:
    """Answers in an output when all are there, until then in a journal, or in memory where the input is answered many times."""

    def __init__(self, question: Question, say: Any, lasting: bool = True) -> None:
        """`lasting`: with a journal; `say` is told when an output is going to be replaced, and what cannot be told later.

        Raises InputError when the output could not be written.
        """
        assert question.output is not None
        self.say, self.lasting = say, lasting and question.repeat == 1
        self.output, self.question, self.wanted = question.output, question, True
        check_path(self.output)
        check_apart(self.output, question.source)
        self.already = nothing_left(self.output, question.resume, say)  # the finished output, where there is one to be resumed
        self.known: Collection[int] = ()
        self.begun: Mapping[int, Sequence[Chosen]] = {}
        self.journal: Journal | None = None
        self.held: dict[tuple[int, ...], Event] = {}
        self.answered, self.written = 0, False

    def begin(self, head: Mapping[str, Any], count: int, refused: Mapping[int, Finished]) -> None:
        self.head, self.count, self.refused = {"requests": count, **head}, count, refused
        if self.already is not None:
            self.already.check(self.head)
            self.known = range(count)
        elif self.lasting:
            if self.question.resume:
                check_not_less(self.output, count)
            self.journal = Journal(journal_path(self.output), head, count, self.question.resume)
            self.known, self.begun = self.journal.finished, self.journal.begun
            if launched() and not mpirun_is_here():  # mpirun, which ends when it is interrupted, passes no last word on
                self.say(f"answers are kept on {host_name()} in {self.journal.path} as they come; should this be cut off, {going_on()}")

    def event(self, event: Event) -> None:
        self.answered += len(event.requests)
        if self.journal is not None:
            try:
                finished = event.finished
            except InputError:  # if strict: then nothing is left behind that holds nothing
                if not self.journal.finished and not self.journal.begun:
                    self.journal.remove()
                raise
            self.journal.add(event.places, finished, event.seconds, event.grown)
        elif event.places:
            self.held[tuple(event.places)] = event

    def write(self) -> Tally:
        if self.already is not None:
            return self.already.tally
        found = Answers() if self.journal is None else self.journal.finished
        for event in self.held.values():
            found.hold(zip(event.places, event.finished))
        found.hold((place, item) for place, item in self.refused.items() if place not in found)
        tally = write_signed(self.output, found, self.head)
        self.written = True
        if self.journal is not None:
            self.journal.remove()
        return tally

    def kept(self, asked: int) -> str:
        if self.already is not None or self.written:
            return f"every answer is in {self.output}"
        if self.journal is None:
            return unkept(self.answered, asked, "with --repeat or --logits")
        return self.left() or f"none of {self.count} answers is there yet"

    def left(self) -> str:
        return "" if self.journal is None or self.written else kept_of(self.journal, self.count)


class Beside:
    """Hands events to those that listen in a thread of its own, in order; what one of them raises is raised by the next call here."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners
        self.error: BaseException | None = None
        self.waiting: queue.Queue[Event | None] = queue.Queue(WAITING)
        self.lock, self.stopped = threading.Lock(), False
        self.thread = threading.Thread(target=self._work, name="answers", daemon=True)

    @property
    def behind(self) -> bool:
        """Whether the next event has to wait until there is room for it."""
        return self.waiting.full()

    def event(self, event: Event) -> None:
        """Hand on an event as soon as there is room for it."""
        self.waiting.put(event)
        self._check()

    def stop(self) -> None:
        """Hand on nothing any more; wait a moment for what is being handed on."""
        self.stopped = True
        if self.lock.acquire(timeout=STOP_SECONDS):
            self.lock.release()

    def __enter__(self) -> "Beside":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait until all is handed on, unless something went wrong."""
        if kind is not None:
            self.stopped = True
            return
        self.waiting.put(None)
        self.thread.join()
        self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        while (event := self.waiting.get()) is not None:
            with self.lock:
                if self.stopped:
                    continue
                try:
                    for listener in self.listeners:
                        listener.event(event)
                except BaseException as error:  # noqa: BLE001  whoever gives the events raises it
                    self.error, self.stopped = error, True


class Noted:
    """Notes, after others have heard of an event, what is to be said should this process end without a word."""

    def event(self, event: Any) -> None:
        interrupts.note()


def unkept(answered: int, asked: int, why: str) -> str:
    """Say how many of those that were asked are answered, where nothing is kept of them.

    >>> unkept(0, 8, "without --output FILE"), unkept(1, 8, "with --repeat")
    ('none of 8 answers is there yet', '1 of 8 was answered, of which nothing is kept with --repeat')
    """
    if not answered:
        return f"none of {asked} answers is there yet"
    return f"{answered} of {asked} {'was' if answered == 1 else 'were'} answered, of which nothing is kept {why}"


def kept_of(journal: Journal, count: int) -> str:
    """Say what a journal keeps of a run that is interrupted, and what goes on with it; "" where it keeps nothing."""
    if not journal.finished and not journal.begun:
        return ""
    if not journal.path.exists():
        return f"{len(journal.finished)} of {count} were answered, of which nothing is kept: {journal.path} was deleted"
    more = f" and the beginnings of {len(journal.begun)}" if journal.begun else ""
    return f"{len(journal.finished)} of {count} answers{more} are kept in {journal.path}; {going_on()}"


@functools.cache
def going_on() -> str:
    """Say with which command a run that was cut off goes on: the one that was typed, with --resume."""
    words = command_line()
    if not words:
        return "go on with the same command and --resume"
    return f"go on with: {shlex.join(words + ['--resume'] * ('--resume' not in words))}"
