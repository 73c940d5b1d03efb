"""Files that are there whole or not at all, and JSON documents with a format and a version. Knows nothing of their content."""

import json
import os
import reprlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hepti_mpi.errors import HeptiError, reason_of

LARGEST_DOCUMENT = 256 << 20  # bytes
BEGIN = b'{"format":"hepti-'  # of each document, without blanks
_unfinished: set[Path] = set()  # what is of no use to anybody yet


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` that is nobody else's, for a file or a folder until it is complete; what has it at the end is removed."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _unfinished.discard(temporary)


def begin_with_nothing(path: Path) -> None:
    """Note that there is nothing in the file at `path` yet that anybody wants, until `keep` is told otherwise."""
    _unfinished.add(path)


def keep(path: Path) -> None:
    """Note that the file at `path` is wanted from now on."""
    _unfinished.discard(path)


def put_away() -> None:
    """Remove what is being written: for a process that ends while its main thread is where no exception reaches it."""
    for path in list(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # whatever kept it from being made is told by the caller
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yield a file that gets the name `path` when it is complete and on the disk, and leaves nothing behind otherwise.

    `mode`: who may read it, besides the umask. The temporary name is nobody else's, so two programs may write the same path.
    Raises OSError.
    """
    path = behind_links(path)
    with unfinished(path) as temporary:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name too
        finally:
            os.close(folder)


def behind_links(path: Path) -> Path:
    """Return which file is written where `path` is named: a link stays, and what it points to is, on a larger disk maybe."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def check_place(path: Path, failure: type[HeptiError], what: str = "", making: bool = False) -> None:
    """Raise `failure` where no file of that name could be written, before there is much to lose. `what`: it is, with a blank behind;
    `making`: folders that lack will be made."""
    folder = behind_links(path).parent
    while making and folder != folder.parent and not os.path.lexists(folder):
        folder = folder.parent
    if os.path.isdir(path):
        raise failure(f"{what}{path} is a folder; name a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise failure(f"{what}{path} is there and is no file; name another")
    if not os.path.isdir(folder):
        raise failure(f"{what}{path}: " + (f"{folder} is no folder" if os.path.exists(folder) else f"folder {folder} does not exist"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise failure(f"{what}{path}: folder {folder.absolute()} cannot be written")


def check_document_place(path: Path, failure: type[HeptiError], what: str = "", making: bool = False) -> None:
    """The same for a document of ours, which takes the place of another one only."""
    check_place(path, failure, what, making)
    try:
        with path.open("rb") as file:
            begin = b"".join(file.read(4 * len(BEGIN)).split())[: len(BEGIN)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure(f"{what}{path} cannot be read: {reason_of(error)}") from None
    if begin and not BEGIN.startswith(begin):
        raise failure(f"{what}{path} is there and was not written by this program: name another file")


def append_lines(path: Path, lines: Sequence[str], failure: type[HeptiError]) -> None:
    """Write lines behind what is in a file, all of them or none. Raises `failure`."""
    try:
        new = not path.exists()
        with path.open("ab", buffering=0) as file:
            before, left = file.tell(), memoryview("".join(line + "\n" for line in lines).encode())
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                if new:
                    path.unlink()
                raise
    except OSError as error:
        raise failure(f"{path} cannot be written: {reason_of(error)}") from None


def json_line(value: Any) -> str:
    """Return JSON in one line, its letters as they are; escaped where there is half a character, which UTF-8 cannot say."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def write_document(path: Path, document: dict[str, Any], failure: type[HeptiError]) -> None:
    """Write a JSON document. Raises `failure` where that is not possible."""
    try:
        with whole_file(path) as file:
            file.write(json.dumps(document, indent=1).encode() + b"\n")
    except OSError as error:
        raise failure(f"{path} cannot be written: {reason_of(error)}") from None


def read_document(
    path: Path, form: str | tuple[str, ...], version: int | None, failure: type[HeptiError], again: str
) -> dict[str, Any]:  # fmt: skip
    """Return a JSON document of format `form`, or one of them, and `version`, None: any; `again`: how to make it, for the sentence.

    Raises: `failure` when it cannot be read, is no JSON, or has another format or version.
    """
    forms = (form,) if isinstance(form, str) else form
    kind = forms[0].removeprefix("hepti-")
    try:
        if path.stat().st_size > LARGEST_DOCUMENT:
            raise failure(f"{path} is larger than {LARGEST_DOCUMENT >> 20} MiB, so it is not a {kind} of hepti_mpi; {again}")
        data = json.loads(path.read_text())
    except OSError as error:
        raise failure(f"{path} cannot be read: {reason_of(error)}; {again}") from None
    except (ValueError, RecursionError):
        raise failure(f"{path} is not JSON; {again}") from None
    if not isinstance(data, dict) or data.get("format") not in forms:
        raise failure(f"{path} is not a {kind} of hepti_mpi{_kind_said(data)}; {again}")
    if version is not None:
        check_version(path, data.get("format_version"), version, failure, again)
    return data


def _kind_said(data: Any) -> str:
    """Return which of our documents it is instead.

    >>> _kind_said({"format": "hepti-profiles"}), _kind_said({"format": "hepti-inspection"}), _kind_said([])
    (' but a profile', ' but an inspection', '')
    """
    form = data.get("format") if isinstance(data, dict) else None
    kind = form.removeprefix("hepti-").removesuffix("s") if isinstance(form, str) and form.startswith("hepti-") else ""
    return f" but {'an' if kind[0] in 'aeiou' else 'a'} {kind:.40}" if kind.replace("-", "").isalpha() else ""


def check_version(path: Path, found: object, version: int, failure: type[HeptiError], again: str) -> None:
    """Raise `failure` where the version that was found, None where there is none, is another one than this program reads."""
    if found != version:
        raise failure(f"{path} has {version_said(found)}, this program reads {version}; {again}")


def version_said(found: object) -> str:
    """Return what is said of a version.

    >>> version_said(2), version_said(None)
    ('format version 2', 'no format version')
    """
    return "no format version" if found is None else f"format version {reprlib.repr(found)}"
