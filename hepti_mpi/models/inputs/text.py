"""What the user gives as texts: lines, JSON lines and tables become items, each with its place and, where it is of no use, why.

JSON says that a text is empty, and such a text has an answer; a line or a cell with nothing in it says that there is none.
Knows files and how texts lie in them; knows no model, no token and no array.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hepti_mpi.errors import InputError, reason_of
from hepti_mpi.models.untrusted import each_once, half_character, shown, whole_number

TEXT_LIMIT = 1 << 28  # bytes of one text file
TEXT, PAIR, ID = "text", "text_pair", "id"  # fields and columns that are looked for where none is named
PARTNERS = ("text2", "text_2", "text_b", "second_text", "sentence2", "sentence_2", "hypothesis")  # what others call text_pair
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".txt", ".jsonl", *DELIMITERS)
TAKEN = f"the model takes texts: {', '.join(SUFFIXES)}, .npz with input_ids, or - for standard input"
OTHERS = {b"\x1f\x8b": "compressed with gzip: unpack it", b"PK\x03\x04": "a zip archive (or a spreadsheet): unpack it, or save it as .csv",
          b"\xff\xfe\0\0": "UTF-32: save it as UTF-8", b"\0\0\xfe\xff": "UTF-32: save it as UTF-8",
          b"\xff\xfe": "UTF-16: save it as UTF-8", b"\xfe\xff": "UTF-16: save it as UTF-8"}  # fmt: skip
WIDE = "UTF-16 without a mark at its beginning: save it as UTF-8"
SHOWN = 1000  # characters of a line that stand in an answer for a text that it does not hold
BEGIN = 8000  # bytes of a file by which Git, too, tells whether it is text: no byte of a text is 0
FEW, PART = 5, 20  # so many bytes, or one of so many, may be none of a text's where one is 0: they cost their own lines
NO_LETTER = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ud800-\udfff]")  # also what a byte that is no UTF-8 becomes


@dataclass(frozen=True)
class Reading:
    """How inputs are read.

    `field`, `pair`: the field of an object, or the column of a table, that holds the text, and the one that holds the text it is paired
    with; None: "text" and, where there is one, "text_pair". `strict`: the first input that cannot be answered ends the job.
    """

    field: str | None = None
    pair: str | None = None
    strict: bool = False

    @property
    def named(self) -> tuple[str, ...]:
        """The fields that must be there."""
        return (self.field or TEXT, *([self.pair] if self.pair else []))

    @property
    def read(self) -> tuple[str, ...]:
        """The fields that are read where they are there."""
        return (*self.named, *([] if self.field or self.pair else [PAIR]), ID)


@dataclass(frozen=True)
class Item:
    """One input as it was given.

    `origin`: where it came from, such as "line 3 of x.txt". `text`: of a line that holds none the line itself, None of what is no line.
    `pair`: the text that it is paired with. `id`: what it was called there. `error`: why it cannot be answered.
    """

    origin: str
    text: str | None = None
    pair: str | None = None
    id: Any = None
    error: str | None = None


def read_texts(source: str, stdin: IO[Any] | None, reading: Reading) -> list[Item]:
    """Return the texts in a file or, where `source` is "-", on standard input, in their order; at least one.

    Raises InputError when there is none, when all lack the field, and for a file that holds no text.
    """
    name, suffix, text = read_text(source, stdin, ".jsonl" if reading.field else ".txt")
    if suffix == ".txt" and (reading.field or reading.pair):
        raise InputError(f"{name} is a text per line: --field and --pair are for .jsonl, .csv and .tsv")
    if suffix in DELIMITERS:
        items = list(_table(text, name, DELIMITERS[suffix], reading))
    else:
        lines = lines_of(text, name)
        items = _objects(lines, name, reading) if suffix == ".jsonl" else [_of_line(line, where) for where, line in lines]
        if suffix == ".jsonl" and any(item.error for item in items) and _one_list(text):
            raise InputError(f"{name} is one JSON list; write each of its members into a line of its own: jq -c '.[]' FILE")
    if not items:
        raise InputError(f"{name} is empty; expected a text per line" if suffix not in DELIMITERS else f"{name} has no rows below its head")
    return items


def read_text(source: str, stdin: IO[Any] | None, streamed: str) -> tuple[str, str, str]:
    """Return (name, suffix, content) of a file or, where `source` is "-", of standard input, whose suffix is `streamed`.

    Bytes that are no UTF-8 become lone surrogates. Raises InputError for a file that holds no text.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if source == "-":
        name, content, suffix = "standard input", _read_stream(stdin), streamed
    elif suffix in SUFFIXES and os.path.isfile(path):
        name, content = path.name, _read_file(path)
    else:
        raise InputError(f"input {path} is {'a folder' if path.is_dir() else 'not supported'}; {TAKEN}")
    what = next((what for begin, what in OTHERS.items() if content.startswith(begin)), WIDE if _is_wide(content) else None)
    if what is not None:
        raise InputError(f"{name} is {what}, then give it again")
    _check_text(content, name)
    return name, suffix, content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _is_wide(content: bytes) -> bool:
    """Return whether every other byte of the beginning is 0, as of Latin letters in UTF-16."""
    few = content[:BEGIN]
    return len(few) >= 4 and any(not any(few[at::2]) and any(few[1 - at :: 2]) for at in (0, 1))


def _check_text(content: bytes, name: str) -> None:
    """Raise InputError for a picture or another file that is no text as a whole."""
    begin = content[:BEGIN]
    if b"\0" in begin:
        odd = len(NO_LETTER.findall(begin.decode("utf-8", "surrogateescape")))
        if odd > max(FEW, len(begin) // PART):  # also of UTF-8: Cyrillic or Greek letters in UTF-16 without a mark are that too
            raise InputError(f"{name} holds no text in UTF-8; {TAKEN}")


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            few = min(os.fstat(file.fileno()).st_size, TEXT_LIMIT) + 1  # read() takes memory for all that it is asked for
            data = file.read(few)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from None
    if len(data) > TEXT_LIMIT:
        raise InputError(f"{path} is larger than {TEXT_LIMIT >> 20} MiB; give it in parts")
    return data


def _read_stream(stdin: IO[Any] | None) -> bytes:
    """Return everything on a text or binary stream."""
    try:
        data = b"" if stdin is None else stdin.read(TEXT_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"standard input cannot be read: {error}") from None
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")
    if len(data) > TEXT_LIMIT:
        raise InputError(f"standard input is larger than {TEXT_LIMIT >> 20} MiB; give it in parts")
    return data


def lines_of(text: str, name: str) -> list[tuple[str, str]]:
    """Return (origin, line) of lines that end in CR, LF or CRLF; str.splitlines would also end them at characters of a text."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines[-1].strip():
        lines.pop()  # what follows the last line end
    return [(f"line {number} of {name}", line) for number, line in enumerate(lines, 1)]


def bad_byte(text: str, where: str) -> str | None:
    """Return what is wrong with bytes that are no UTF-8, which were decoded to lone surrogates."""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{where} is not UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}"
    return None


def _of_line(line: str, where: str) -> Item:
    wrong = bad_byte(line, where)
    if wrong:
        return Item(where, shown(line, SHOWN), error=wrong)
    return Item(where, line, error=None if line.strip() else f"{where} is empty")


# ---- fields


def _objects(lines: Sequence[tuple[str, str]], name: str, reading: Reading) -> list[Item]:
    """Return the items of JSON lines. Raises InputError when there are objects and none has the fields."""
    items, keys = [], dict[str, None]()
    found = None
    for where, line in lines:
        wrong = bad_byte(line, where) or (None if line.strip() else f"{where} is empty")
        try:
            value = None if wrong else json_value(line)
        except (ValueError, RecursionError) as error:
            wrong = no_json(where, error)
        if wrong is not None:
            items.append(Item(where, shown(line, SHOWN) or line, error=wrong))
        elif isinstance(value, list) and len(value) == 2 and reading.field is None and reading.pair is None:
            found = True
            items.append(_of_fields({TEXT: value}, where, line, reading))
        elif isinstance(value, dict):
            keys |= dict.fromkeys(list(value)[:20])
            found = found or set(reading.named) <= value.keys()
            items.append(_of_fields(value, where, line, reading))
        elif isinstance(value, str) and reading.field is None and reading.pair is None:
            found = True
            items.append(Item(where, value, error=half_character(value, where)))
        else:
            wrong = f"{where} is neither an object with a {json.dumps(reading.named[0])} nor a JSON string or two"
            items.append(Item(where, shown(line, SHOWN), error=wrong))
    _refuse_partner(keys, name, reading)
    if keys and not found:
        raise _lacking(name, reading, list(keys), "field")
    return items


def json_value(line: str) -> Any:
    """Return the value of JSON whose numbers can be written again, and which says nothing twice. Raises ValueError or RecursionError."""
    return json.loads(line, object_pairs_hook=each_once, parse_constant=_no_constant, parse_float=_finite, parse_int=whole_number)


def no_json(where: str, error: ValueError | RecursionError) -> str:
    """Say why json_value gives nothing: what is no JSON, or JSON that is not taken."""
    if isinstance(error, json.JSONDecodeError):
        return f"{where} is not valid JSON"
    return f"{where} is not taken as JSON: {'it is nested too deeply' if isinstance(error, RecursionError) else error}"


def _one_list(text: str) -> bool:
    """Return whether a file is a list as a whole, which is what a data set is often kept as, in one line or several."""
    if not text.lstrip().startswith("["):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text.strip() or any(isinstance(member, dict | list) for member in value) or len(value) > 2


def _no_constant(word: str) -> None:
    raise json.JSONDecodeError("no JSON", word, 0)


def _finite(word: str) -> float:
    """Return the number of JSON that `word` is; 1e999 would be written as Infinity, which is no JSON."""
    if not math.isfinite(value := float(word)):
        raise ValueError(f"{shown(word, 20)} is too large a number")
    return value


def _table(text: str, name: str, delimiter: str, reading: Reading) -> Iterator[Item]:
    """Yield the items of a table whose first row names its columns; blank lines are none of its rows."""
    head: list[str] | None = None
    lines = list(io.StringIO(text, newline=""))
    for number, row in _rows(lines, delimiter):
        where = f"line {number} of {name}"
        if isinstance(row, csv.Error):
            why = f"{where} is no row of a table: {row}; close each quote, and double those inside a quoted text"
            if head is None:
                raise InputError(why)
            yield Item(where, shown(lines[number - 1], SHOWN), error=why)
        elif head is None and row:
            head = [cell.strip() for cell in row]
            _check_head(head, delimiter, name, reading)
        elif head is not None and row:
            whole = delimiter.join(row)
            wrong = bad_byte(whole, where)
            if len(row) > len(head):
                quote = f"quote a text that holds a {json.dumps(delimiter)}"
                wrong = f"{where} has {len(row)} columns, the first line names {len(head)}; {quote}"
            values = dict(zip(head, row))
            if wrong:
                sure = len(row) <= len(head) and not bad_byte(_id(values) or "", where)  # else cells stand in columns of others
                yield Item(where, shown(whole, SHOWN), id=_id(values) if sure else None, error=wrong)
            else:
                yield _of_fields(values, where, whole, reading, cells=True)


def _rows(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield the number of the first line of each row and the row, or what is wrong with it; the next row then begins in the next line, so
    that a quote that is not closed costs its own line only."""
    csv.field_size_limit(TEXT_LIMIT)
    first = 0
    while first < len(lines):
        reader = csv.reader((lines[at] for at in range(first, len(lines))), delimiter=delimiter, strict=True)
        begin = first
        try:
            for row in reader:
                yield first + 1, row
                first = begin + reader.line_num
        except csv.Error as error:
            yield first + 1, error
            first += 1


def _check_head(head: Sequence[str], delimiter: str, name: str, reading: Reading) -> None:
    """Raise InputError when the table has no such columns, or two of the same name, or is divided by something else."""
    _refuse_partner(head, name, reading)
    if not set(reading.named) <= set(head):
        other = next((one for one in (";", "\t", ",") if one != delimiter and one in head[0]), None)
        if len(head) == 1 and other is not None:  # so spreadsheets write where a comma is the decimal point
            between = f"{name} has {json.dumps(other)} between its columns"
            raise InputError(f"{between}; save it with {json.dumps(delimiter)}, then give it again")
        raise _lacking(name, reading, head, "column")
    twice = next((column for column in reading.read if head.count(column) > 1), None)
    if twice is not None:
        raise InputError(f"{name} has {head.count(twice)} columns {json.dumps(twice)}; name them apart")


def _refuse_partner(keys: Iterable[str], name: str, reading: Reading) -> None:
    """Raise InputError where texts look like pairs and nobody said whether they are."""
    partner = next((key for key in keys if key in PARTNERS), None)
    if partner is not None and reading.field is None and reading.pair is None:
        raise InputError(f'{name} has "{partner}": give --pair {partner} if each text is paired with it, --field {TEXT} if not')


def _lacking(name: str, reading: Reading, there: Sequence[str], kind: str) -> InputError:
    lacks = next((one for one in reading.named if one not in there), reading.named[0])
    option = "--pair" if lacks == reading.pair else "--field"
    known = ", ".join(shown(key, 60) for key in there[:10]) + ", ..." * (len(there) > 10)
    head = ", or put a line of names before the first" * (kind == "column")
    return InputError(f"{name} has no {kind} {json.dumps(lacks)[:100]}; it has: {known}; name one of them with {option}{head}")


def _of_fields(values: Mapping[str, Any], where: str, line: str, reading: Reading, cells: bool = False) -> Item:
    """Return the item that an object or, of `cells`, a row of a table holds, which is written so in a `line`."""
    name, second = reading.field or TEXT, reading.pair or (PAIR if reading.field is None else "")
    wanted = [(name, values.get(name))]
    if isinstance(wanted[0][1], list) and len(wanted[0][1]) == 2 and second not in values:
        wanted = [(name, each) for each in values[name]]
    elif reading.pair or values.get(second) is not None:
        wanted.append((second, values.get(second)))
    texts, wrong = list[str](), None
    for key, value in wanted:
        if not isinstance(value, str):
            what = "has something else than text as" if key in values else "has no"
            wrong = wrong or f"{where} {what} {json.dumps(key)[:100]}"
        elif cells and not value.strip():
            wrong = wrong or f"{where} has nothing in column {json.dumps(key)[:100]}"
        else:
            wrong = wrong or half_character(value, where)
        texts.append(value if isinstance(value, str) else "")
    if wrong and not (all(isinstance(value, str) for _, value in wanted) and any(text.strip() for text in texts)):
        texts = [shown(line, SHOWN)]
    return Item(where, texts[0], texts[1] if len(texts) == 2 else None, _id(values), wrong)


def _id(values: Mapping[str, Any]) -> Any:
    """Return what an input is called, also where that is in "ID", as spreadsheets write it; None where it has no name."""
    return next((values[name] for name in (ID, "ID", "Id") if name in values), None)
