"""Where the values of a program live and what each step must wait for. Pure: knows steps and names of values; no sizes, no MPI."""

from hepti_mpi.program.kept import Kept
from hepti_mpi.program.operation import Form
from hepti_mpi.program.ownership import ROOT
from hepti_mpi.program.steps import EMBEDDED, KEPT_STEPS, RESULT, Compute, Program, Same, Step, Value

REST = 4  # steps per tile that a buffer rests

LaidOut = tuple[dict[str, Value], list[tuple[tuple[str, ...], tuple[str, ...]]]]
_LAID: Kept[LaidOut] = Kept(KEPT_STEPS)


class Laid:
    """A program with `values`, where they live, and `interfaces`, of each step."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values, self.interfaces = _LAID.get(Same(program), lambda: _laid(program), lambda _: len(program))


def _laid(program: Program) -> LaidOut:
    """Return the values and interfaces of a program; nobody changes them."""
    values = distributions(program)
    return values, [interface(values, step) for step in program]


def distributions(program: Program) -> dict[str, Value]:
    """Return what a rank holds of each value that outlives its Compute."""
    whole: set[str] = set()  # read by an operation that needs the rows of all tiles
    made: dict[int, dict[str, tuple[Form, int]]] = {}  # by operations, which are the same ones in every tile
    for step in program:
        if isinstance(step, Compute) and id(step.ops) not in made:
            all_rows = {name for op in step.ops for name in op.whole()}
            whole.update(all_rows.intersection((*step.reads, *step.writes)))
            outside = set(step.writes)
            made[id(step.ops)] = {name: (form, width) for op in step.ops if not outside.isdisjoint(op.writes)
                                  for name, form, width in zip(op.writes, op.writes_as(), op.widths(), strict=True)}  # fmt: skip
    result: dict[str, Value] = {}
    for step in program:
        if isinstance(step, Compute):
            for name in step.writes:
                tile, (form, width) = None if name in whole else step.tile, made[id(step.ops)][name]
                result[key(name, tile)] = Value(step.distribution, form.axis or "hidden", tile, form.dtype, width)
            continue
        for name in (*step.reads, *step.writes):
            if name in (EMBEDDED, RESULT):
                result[name] = Value("root", "hidden", None, width=step.width)
        want = step.want
        if want != ROOT:
            for read, name in zip(step.reads, step.writes):
                tile, went = None if name in whole else step.tile, result.get(named(result, read, step.tile))
                width, dtype = (went.width, went.dtype) if went else (step.width, "float32")  # it comes as it went
                result[key(name, tile)] = Value(want.rows, want.columns, tile, dtype, width)
    return result


def key(name: str, tile: int | None) -> str:
    """Return what a tile of a value is called; the value itself where it spans all tiles."""
    return name if tile is None else f"{name}.{tile}"


def named(values: dict[str, Value], name: str, tile: int | None) -> str:
    """Return the key under which a step of `tile` finds `name`."""
    return name if name in values else key(name, tile)


def interface(values: dict[str, Value], step: Step) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of what a step reads and of what it writes, or writes a part of."""
    tile = f".{step.tile}"  # as key() has it
    reads = tuple([name if name in values else name + tile for name in step.reads])
    return reads, tuple([name if name in values else name + tile for name in step.writes])


def dependencies(program: Program) -> tuple[frozenset[int], ...]:
    """Return, per step, the earlier steps that must be done before it: those that write what it reads, and those that use a buffer
    that it overwrites. Several tiles fill a value together, so they do not wait for each other."""
    laid = Laid(program)
    numbers = buffers(laid)
    writers: dict[str, set[int]] = {}
    occupant: dict[int, str] = {}  # per buffer the value in it
    users: dict[str, set[int]] = {}
    freed: dict[str, set[int]] = {}  # per value, the users of the value whose buffer it took
    result = []
    for place, (reads, writes) in enumerate(laid.interfaces):
        needed: set[int] = set().union(*(writers.get(name, set()) for name in reads))
        for name in writes:
            number = numbers.get(name)
            if number is not None and occupant.get(number) != name:
                freed[name] = users.get(occupant.get(number, ""), set())
                occupant[number] = name
            needed |= freed.get(name, set())
        for name in (*reads, *writes):
            users.setdefault(name, set()).add(place)
        for name in writes:
            writers.setdefault(name, set()).add(place)
        result.append(frozenset(needed))
    return tuple(result)


def buffers(laid: Laid) -> dict[str, int]:
    """Assign every value a buffer number such that no two values that live at once share one, by a linear scan.

    The embedding and the result are the root's and get no number. A buffer rests a while before it is used again, since what takes
    it over must wait for what still travels out of it.
    """
    values, rest = laid.values, REST * (1 + max(step.tile for step in laid.program))
    last = {name: place for place, (reads, writes) in enumerate(laid.interfaces) for name in (*reads, *writes)}
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        ends.setdefault(place + rest, []).append(name)
    numbers: dict[str, int] = {}
    free: dict[Value, list[int]] = {}
    count = 0
    for place, (_, writes) in enumerate(laid.interfaces):
        for name in writes:
            if name in (EMBEDDED, RESULT) or name in numbers:
                continue
            pool = free.setdefault(values[name], [])
            if pool:
                numbers[name] = pool.pop()
            else:
                numbers[name] = count
                count += 1
        for name in ends.get(place, ()):
            if name in numbers:
                free.setdefault(values[name], []).append(numbers[name])
    return numbers
