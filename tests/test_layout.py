"""The rules of the tree: who may import whom, one owner per library, a docstring and a bounded length for each module."""

import ast
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hepti_mpi"
MODULES = sorted(ROOT.rglob("*.py"))
LEVELS = [
    ("errors", "splits", "quantiles", "documents", "wording"),
    ("models",),
    ("comm",),
    ("cluster",),
    ("program",),
    ("weights",),
    ("planning",),
    ("reporting",),
    ("doctor",),
    ("engine",),
    ("tuning",),
    ("serving",),
    ("supervisor",),
    ("api",),
    ("commands",),
    ("__main__",),
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
OWNERS = {
    "mpi4py": {"comm/ranks.py", "comm/exchange.py", "comm/launcher.py", "comm/mail.py"},
    "h5py": {"weights/hdf5.py"},
    "onnx": {"engine/graph.py", "engine/kernels.py", "engine/caching.py", "engine/sessions.py", "engine/timing.py",
             "engine/glance.py", "engine/integers.py", "engine/opening.py"},
    "onnxruntime": {"engine/runtime.py", "engine/opening.py", "engine/caching.py", "engine/sessions.py", "engine/glance.py"},
    "click": {"commands/*", "__main__.py"},
    "tokenizers": {
        "models/inputs/tokens.py", "models/checkpoints/tokenizerclasses.py", "models/checkpoints/tokenizing.py",
        "models/checkpoints/gguftokens.py", "models/checkpoints/pieces.py",
    },
    "llguidance": {"models/tasks/forms.py"},
    "jinja2": {"models/inputs/chat.py"},
    "PIL": {"models/inputs/images.py"},
    "safetensors": {"models/checkpoints/safetensors.py"},
    "scipy": {"planning/baselines.py"},
    "matplotlib": {"reporting/canvas.py"},
    "prometheus_client": {"serving/metrics.py", "serving/http/meters.py"},
    "starlette": {"serving/http/app.py"},
    "uvicorn": {"serving/http/server.py"},
    "h11": {"serving/http/server.py"},
    "rich": {"__main__.py", "commands/terminal.py", "reporting/drawing.py", "reporting/tables.py"},
}
LINES = 400
FUNCTION_LINES, PARAMETERS = 60, 8


@cache
def tree_of(path):
    """A module, parsed: each is asked about many things."""
    return ast.parse(path.read_text())


@cache
def nodes_of(path):
    """What is looked at of a module: to walk through one takes longer than to parse it."""
    kinds = (ast.Constant, ast.Import, ast.ImportFrom, ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [item for item in ast.walk(tree_of(path)) if isinstance(item, kinds)]


@cache
def imports_of(path):
    return list(imports(nodes_of(path)))


def imports(nodes):
    """Every module that is imported anywhere in a module, with `from package import module` spelled out; also one that a text names, by
    which it could be imported."""
    for item in nodes:
        if isinstance(item, ast.Constant) and isinstance(item.value, str) and re.fullmatch(r"hepti_mpi(\.\w+)+(:\w+)?", item.value):
            yield item.value.partition(":")[0]
        if isinstance(item, ast.Import):
            yield from (name.name for name in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, "imports are absolute"
            yield from (f"{item.module}.{name.name}" for name in item.names)


def breaches(place, names):
    """What is wrong with a module at `place` in hepti_mpi that imports `names`."""
    own = Path(place).parts[0].removesuffix(".py")
    for name in names:
        top, *rest = name.split(".")
        if top in OWNERS and not any(fnmatch(place, owner) for owner in OWNERS[top]):
            yield f"{place} imports {top}, which is for {', '.join(OWNERS[top])}"
        if top != "hepti_mpi" or rest == ["__version__"] or (place, name) == ("__init__.py", "hepti_mpi.api.model"):  # which it hands on
            continue
        other = rest[0]
        if other not in LEVEL or own not in LEVEL:
            yield f"{place} imports {name}, which has no level"
        elif LEVEL[other] >= LEVEL[own] and not (other == own and "/" in place) and own not in LEVELS[0]:
            yield f"{place} imports {name}, which is not above it"
        elif own in LEVELS[0] and other not in LEVELS[0]:
            yield f"{place} imports {name}, which is not above it"


def of_module(path):
    """What is wrong with a module as a whole."""
    place, source = path.relative_to(ROOT).as_posix(), path.read_text()
    if path.name == "__init__.py" and path.parent != ROOT:
        if source.strip():
            yield f"{place} is only there to make a package"
        return
    yield from breaches(place, imports_of(path))
    if not ast.get_docstring(tree_of(path)):
        yield f"{place} has no docstring"
    if len(source.splitlines()) > LINES:
        yield f"{place} has more than {LINES} lines"


def of_functions(path):
    """Which functions are long or take much."""
    for item in nodes_of(path):
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        where, given = f"{item.name} in {path.relative_to(ROOT)}", [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]
        if item.end_lineno - item.lineno >= FUNCTION_LINES:
            yield f"{where} has more than {FUNCTION_LINES} lines"
        own = [one.arg for one in given if one.arg not in ("self", "cls")]
        if len(own) > PARAMETERS:
            yield f"{where} takes {len(own)}: put what belongs together into a class"


def of_names(path):
    """Which modules docstrings name that are not there."""
    rooms = "|".join(room.name for room in ROOT.iterdir() if room.is_dir())
    for item in nodes_of(path):
        if isinstance(item, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            for room, name, file in re.findall(rf"(?<![\w./])({rooms})(?:\.([a-z_]+)|/([a-z_]+)\.py)", ast.get_docstring(item) or ""):
                place = ROOT / room / (name or file)
                if not (place.is_dir() or place.with_suffix(".py").exists()):
                    yield f"{path.relative_to(ROOT)}: there is no {room}.{name or file}"


def of_owners(path):
    """Whether it says that it is the only user of a library, and is not: two did."""
    place = path.relative_to(ROOT).as_posix()
    for name in re.findall(r"only user of (?:the )?(\w+)", ast.get_docstring(tree_of(path)) or ""):
        if OWNERS.get({"Pillow": "PIL"}.get(name, name)) != {place}:
            yield f"{place} says that it is the only user of {name}"


@pytest.mark.parametrize("check", [of_module, of_functions, of_names, of_owners])
def test_modules(check):
    """All that is wrong is told at once."""
    assert [fault for path in MODULES for fault in check(path)] == []


ROOMS_OF_MODELS = ("inputs", "tasks", "families", "checkpoints")  # what they share lies beside them; each may use those before it


def test_rooms_of_models():
    for path in (ROOT / "models").rglob("*.py"):
        place = path.relative_to(ROOT / "models").parts
        own = ROOMS_OF_MODELS.index(place[0]) if len(place) > 1 else -1
        for name in imports_of(path):
            parts = name.split(".")
            if parts[:2] == ["hepti_mpi", "models"] and len(parts) > 3 and parts[2] in ROOMS_OF_MODELS:
                assert ROOMS_OF_MODELS.index(parts[2]) <= own, f"{place} imports {name}, which is not above it"


def test_no_circle():
    """No module imports itself by way of others, at its beginning, within a function or for types; but the package hands names on."""
    known = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in MODULES if path != ROOT / "__init__.py"}
    uses = {}
    for name, path in known.items():
        found = {part for wanted in imports_of(path) for part in (wanted, wanted.rpartition(".")[0])}
        uses[name] = (found & set(known)) - {name}
    while uses:
        free = {name for name, others in uses.items() if not others & set(uses)}
        assert free, f"these import each other: {', '.join(sorted(uses))}"
        uses = {name: others for name, others in uses.items() if name not in free}


def test_there_are_modules():
    rooms = {path.relative_to(ROOT).parts[0] for path in MODULES if path.parent != ROOT}
    assert len(MODULES) > 25 and rooms == {name for names in LEVELS for name in names if (ROOT / name).is_dir()}


@pytest.mark.parametrize("place, source, wrong", [
    ("planning/pricer.py", "from hepti_mpi.program.plan import Plan\nfrom hepti_mpi.models import spec\nimport numpy", 0),
    ("planning/pricer.py", "from hepti_mpi.engine.engine import Engine", 1),
    ("planning/pricer.py", "from hepti_mpi import comm, cli", 1),
    ("models/spec.py", "def f():\n    import hepti_mpi.cluster.profile", 1),
    ("splits.py", "from hepti_mpi.models import spec", 1),
    ("comm/ranks.py", "from hepti_mpi import splits\nfrom hepti_mpi.comm import launcher\nfrom mpi4py import MPI", 0),
    ("comm/ranks.py", "from hepti_mpi.cluster import links", 1),
    ("cluster/links.py", "from hepti_mpi.comm.ranks import Comm\nfrom mpi4py import MPI", 1),
    ("planning/baselines.py", "import scipy.optimize", 0),
    ("planning/search.py", "from scipy.optimize import milp\nimport matplotlib", 2),
    ("commands/main.py", "import hepti_mpi.__main__", 1),
    ("commands/main.py", "from hepti_mpi.reporting import records\nimport click", 0),
    ("reporting/records.py", "import click", 1),
    ("weights/slices.py", "import h5py", 1),
    ("engine/engine.py", "from onnx import helper\nimport onnxruntime", 2),
    ("tools/x.py", "from hepti_mpi.errors import HeptiError", 1),
    ("planning/pricer.py", "from importlib import import_module\nx = import_module('hepti_mpi.engine.engine')", 1),
    ("planning/pricer.py", "def f():\n    return __import__('hepti_mpi.engine.engine')", 1),
    ("commands/main.py", "COMMANDS = {'run': 'hepti_mpi.commands.run:run'}", 0),
    ("models/spec.py", "SAID = 'hepti_mpi is a package; hepti_mpi.engine computes'", 0),
])  # fmt: skip
def test_breaches_are_seen(place, source, wrong):
    assert len(list(breaches(place, imports(ast.walk(ast.parse(source)))))) == wrong
