"""The lines of a hostfile, as mpirun of Open MPI 5 and people write them. Pure: knows their form; does not know which machines they mean.

Source: openpmix/prrte, src/util/hostfile (the lexer and the parser of mpirun's launcher).
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address

from hepti_mpi.errors import HeptiError
from hepti_mpi.wording import counted

SLOTS = ("slots", "cpu", "count")
MOST = tuple(f"{word}{dash}{'max'}" for word in SLOTS for dash in "-_") + tuple(f"max{dash}{word}" for word in SLOTS for dash in "-_")
USERS = ("username", "user-name", "user_name")
KNOWN = "slots=, max_slots=, username= and port="
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")  # never begins with -: ssh would take it for an option
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
COUNTED = re.compile(r"(.+):(\d+)")  # of MPICH
COMMENT = re.compile(r"(?:#|//)[^\r\n]*|/\*.*?\*/", re.DOTALL)  # the one that begins first holds the other
CUT = "\0"  # where a comment stood that has an end
WORDS = (*SLOTS, *MOST, *USERS, "port", "slot", "boards", "cores", "sockets")  # to the lexer, wherever they stand
PLAIN = re.compile(r"[A-Za-z0-9_-]+")  # a user whom the lexer takes for one
HEAD = re.compile(r"[A-Za-z0-9_:@-]+|([A-Za-z0-9][A-Za-z0-9_-]*@)?[A-Za-z0-9][A-Za-z0-9_.-]*")  # a host, with a user or without
MOST_SLOTS, MOST_PORT = 1024, 65535


@dataclass
class Line:
    """A host as it stands in the file. `slots`: its ranks, None: as many as it has cores; `excluded`: it is to be left out;
    `foreign`: what mpirun does not read as it is meant."""

    number: int
    name: str
    user: str = ""
    port: int | None = None
    slots: int | None = None
    most: int | None = None
    excluded: bool = False
    foreign: list[str] = field(default_factory=list)


def parse(content: bytes) -> list[Line]:
    """Return the lines that name a host. Raises HeptiError: `line N: why`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise HeptiError("it is no text in UTF-8") from None
    if CUT in text:
        raise HeptiError("it is no text: a byte of it is 0")
    text = COMMENT.sub(lambda one: CUT + "\n" * one[0].count("\n") if one[0].startswith("/*") else "", text)
    found = []
    for number, written in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        parts = [part for part in written.split(CUT) if part.strip()]
        words = re.sub(r"\s*=\s*", "=", " ".join(parts)).split()
        if words:
            try:
                found.append(_line(number, words))
            except HeptiError as error:
                raise HeptiError(f"line {number}: {error}") from None
            found[-1].foreign += ["a comment stands within it"] * (len(parts) > 1)
            found[-1].foreign += ["a space of another kind is in it"] * bool(re.search(r"[^\S \t\f\v]", written))
    return found


def faults(content: bytes) -> list[tuple[int, str, str]]:
    """Return what mpirun does not read of the file as it is meant, whichever hosts it names: the line, what it is, and what mends it, of
    which {} is the file."""
    text, found = content.decode("utf-8-sig"), list[tuple[int, str, str]]()
    if content.startswith(b"\xef\xbb\xbf"):
        found.append((1, "it begins with a byte order mark", "take the mark out: sed -i '1s/^\\xEF\\xBB\\xBF//' {}"))
    written = re.split(r"(\r\n|\r|\n)", text)
    if ends := [1 + place // 2 for place, end in enumerate(written) if place % 2 and "\r" in end]:
        also = f", as {counted(len(ends) - 1, 'more lines')} do" if len(ends) > 2 else ", as 1 more does" if len(ends) > 1 else ""
        mend = "end lines as Linux does: sed -i 's/\\r$//; s/\\r/\\n/g' {}"
        found.append((ends[0], f"it ends with a carriage return{also}", mend))
    if any(one.end() == len(text) and one[0][:2] != "/*" for one in COMMENT.finditer(text)):
        found.append(((len(written) + 1) // 2, "the file ends within a comment", "end the line: echo >> {}"))
    return found


def _line(number: int, words: list[str]) -> Line:
    first, *options = words
    if first == "rank" or first.startswith("rank="):
        raise HeptiError("it is a rankfile; write a line for each host: NAME slots=N")
    if first.startswith("+"):
        raise HeptiError(f"{first} counts the hosts of a batch system; name the host")
    user, at, name = first.removeprefix("^").rpartition("@")
    line = Line(number, name, user, excluded=first.startswith("^"))
    if at and not USER.fullmatch(user):
        raise HeptiError(f"{user!r} is no name of a user")
    if line.excluded:
        line.foreign.append(f"{first} leaves no host out")
    _name(line)
    for option in options:
        _option(line, option)
    if at and not HEAD.fullmatch(f"{user}@{line.name}") or line.user != user and not is_plain(line.user):
        nobody = f"no form of it takes the user {line.user}, who belongs into ~/.ssh/config"
        line.foreign.append(f"{user}@ is no user there" if is_plain(line.user) else nobody)
    if line.slots is not None and line.most is not None and line.most < line.slots:
        raise HeptiError(f"max_slots={line.most} is less than slots={line.slots}")
    if line.slots is None:
        line.slots = line.most
    return line


def _name(line: Line) -> None:
    """Take the name apart: brackets of an address, a number of ranks. Raises HeptiError."""
    given, counted = line.name, COUNTED.fullmatch(line.name)
    if counted and not _is_address(given):
        line.name, line.slots = counted[1], _number(counted[2], 1, 1 << 30, "the number of ranks")
        if line.slots > MOST_SLOTS:
            raise HeptiError(f"{given}: is {counted[2]} a port? write {line.name} port={counted[2]}; for as many ranks slots={counted[2]}")
        line.foreign.append(f"{given} has the form of MPICH")
    if line.name.startswith("[") and line.name.endswith("]"):
        line.name = line.name[1:-1]
        line.foreign.append("an address stands in brackets")
    name = line.name
    if _is_address(name):
        if "%" in name:
            raise HeptiError(f"{name} is an address of one link; give one that holds without %")
        if "." in name and ":" in name:
            found = ip_address(name)
            line.name = str(getattr(found, "ipv4_mapped", None) or found)
            line.foreign.append(f"{name} is two kinds of addresses in one")
        return
    if "," in name:
        raise HeptiError(f"{name} is a list; write a line for each host")
    if re.search(r"\[\d+-\d+\]", name):
        raise HeptiError(f"{name} is a range; write a line for each host")
    if re.fullmatch(r"[\d.]+", name) or ":" in name:
        raise HeptiError(f"{name!r} is no address")
    if not NAME.fullmatch(name) or not HEAD.fullmatch(name):
        raise HeptiError(f"{name!r} is no name of a host")
    if name in WORDS:
        raise HeptiError(f"{name} is a word of hostfiles; name that host by its address")


def is_plain(user: str) -> bool:
    """Tell whether mpirun reads this user after username= as it is meant."""
    return bool(PLAIN.fullmatch(user)) and not user.isdigit() and user not in WORDS


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _option(line: Line, option: str) -> None:
    """Read a word after the name. Raises HeptiError."""
    key, equals, value = option.partition("=")
    small = key.lower()
    if small in (*SLOTS, *MOST, *USERS, "user", "port"):
        if not value:
            raise HeptiError(f"{key} has no value: write {key}={'NAME' if small in (*USERS, 'user') else 'N'}")
        if key != small or small == "user":
            line.foreign.append(f"{key}= is not one of {KNOWN}")
    if small in SLOTS:
        if line.slots is not None:
            raise HeptiError("it has two numbers of ranks; give it slots=N once")
        line.slots = _number(value, 1, 1 << 30, key)
    elif small in MOST:
        line.most = _number(value, 1, 1 << 30, key)
    elif small == "port":
        line.port = _number(value, 1, MOST_PORT, key)
    elif small in (*USERS, "user"):
        if not USER.fullmatch(value):
            raise HeptiError(f"{value!r} is no name of a user")
        line.user = value
    elif equals:
        raise HeptiError(f"{key}= is not known; there are {KNOWN}")
    else:
        raise HeptiError(f"{option!r} stands after {line.name}; write a line for each host, its ranks as slots=N")


def _number(value: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch(r"\d{1,10}", value, re.ASCII) or not least <= int(value) <= most:
        raise HeptiError(f"{what}={value} is no number {f'from {least} to {most}' if most == MOST_PORT else 'above 0'}")
    return int(value)
