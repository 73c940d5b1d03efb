"""Errors that a user can mend. Knows what each one means; does not know how they are printed or which rank they are on.

Message form: what, where, the numbers, the next command. Lower case, no full stop.
"""

import errno
import os
from pathlib import Path

MISNAMED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


class HeptiError(Exception):
    """A sentence for the user; the command line prints it with the host and rank and ends with `exit_code`."""

    exit_code = 2
    agreed = False  # whether every rank knows that the job ends; otherwise the rank that raised must end the others
    alike = False  # whether every rank raises it: rank 0 tells it


class InputError(HeptiError):
    """The text, image or array file that was to be answered cannot be used."""


class PartlyAnswered(HeptiError):
    """Some inputs could not be answered; the others are, and have been put out."""

    exit_code = 5


class ModelError(HeptiError):
    """The model folder is not one that can be read, or describes a model that is not supported."""


class FormatError(ModelError):
    """A format of weights cannot hold the numbers of this model; another one may."""


class StoreError(HeptiError):
    """The weight store is missing, damaged, of another format, or lacks what this rank has to load."""


class ProfileError(HeptiError):
    """The cluster profile is missing, damaged, or describes other hosts."""


class PlanError(HeptiError):
    """The plan is damaged or was made for another model, rank count or version."""


class CapacityError(HeptiError):
    """No plan fits into the memory of the ranks; the message says which rank lacks how many bytes."""

    @classmethod
    def of_all(cls, sentence: str) -> "CapacityError":
        """Return one that every rank raises."""
        error = cls(sentence)
        error.alike = True
        return error


class HostError(HeptiError):
    """This rank's host fails: its disk or its memory. The job may well run without it."""

    exit_code = 4


class RankError(HeptiError):
    """A rank other than this one failed; that rank has already said why."""


class ServiceError(HeptiError):
    """A service cannot answer this; `retry_after`: seconds after which it may, None where asking again is of no use."""

    exit_code = 3

    def __init__(self, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class NotReady(ServiceError):
    """The model is being loaded, or the service is ending."""


class Busy(ServiceError):
    """Too much waits already."""


def reason_of(error: Exception) -> str:
    """Return why the system refused a file, without its name; of a link that leads nowhere, where to."""
    name = getattr(error, "filename", None)
    link = dead_link(Path(os.fsdecode(name))) if isinstance(error, FileNotFoundError) and isinstance(name, (str, bytes)) else None
    return link or getattr(error, "strerror", None) or str(error)


def refused_file(error: BaseException) -> str | None:
    """Say which file the system refused, of a name that no file can have, say, and why; None of another error."""
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, bytes)):
        return None
    return f"{os.fsdecode(error.filename)} cannot be used: {reason_of(error)}"


def is_misnamed(error: BaseException) -> bool:
    """Tell whether the system refused a file for its name, or for whose it is: on any host it would, whatever its disk is like."""
    return refused_file(error) is not None and getattr(error, "errno", None) in MISNAMED


def dead_link(path: Path) -> str | None:
    """Say where a link leads that is at `path`, or on the way there, and at whose end nothing is; None where there is none."""
    for link in (path, *path.parents):
        if os.path.islink(link) and not os.path.exists(link):
            return f"{'it' if link == path else link} is a link to {os.readlink(link)}, where nothing is"
    return None


def place_of(error: BaseException) -> str:
    """Return where in the program an error that is none of these arose: file and line of its innermost frame here, or of the innermost."""
    import traceback

    here = f"{os.sep}{__package__}{os.sep}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if here in frame.filename] or frames
    return f"{own[-1].filename.rpartition(here)[2]}, line {own[-1].lineno}" if own else "nobody knows where"
