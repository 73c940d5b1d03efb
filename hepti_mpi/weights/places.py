"""What lies at a path that was given for a store or a model, and what to do where it is neither: sentences with the next command.

Knows names and folders; opens nothing but small files.
"""

import json
import os
import re
from pathlib import Path
from shlex import quote

from hepti_mpi.comm.launcher import launched_rank
from hepti_mpi.documents import check_place
from hepti_mpi.errors import StoreError, dead_link, reason_of
from hepti_mpi.wording import counted

WEIGHTS = Path("weights")
DEFAULT_STORE = WEIGHTS / "all-MiniLM-L6-v2.h5"
FIRST_PART = "rank00.h5"
USES = {  # what a document of ours is for, by its kind
    "profile": "plan with it: python -m hepti_mpi plan --profile {}",
    "plan": "answer by it: mpirun -hostfile FILE python -m hepti_mpi run --plan {}",
    "bench": "draw it: python -m hepti_mpi report {} --output pictures",
}
NO_STORE = f"name a store, made with: python -m hepti_mpi slice MODEL_FOLDER {DEFAULT_STORE}"
HUB = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+).*")  # a Path has one / of two
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SOURCES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".msgpack", ".index.json")  # other programs' weights
CACHED = ("snapshots/*/config.json", "models--*/snapshots/*/config.json")  # in a folder of huggingface_hub
BELOW = ("*/config.json",)  # of a folder of snapshots
OUTER = ("config.json", "modules.json")  # of a model's own folder
NAMED = 5  # files in a sentence
CACHE_PART = re.compile(r"[0-9a-f]{32}-rank\d+\.h5")  # a file of a --weights-cache (engine.fetching)
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of each HDF5 file
LARGEST = 64 << 20  # bytes of a document that is looked into


def no_store(path: Path) -> str | None:
    """Say what is at `path`, and the next command, where that cannot be a store; None where it may be one."""
    if (closed := _closed(path)) is not None:
        return closed
    if not path.exists():
        return None if path.suffix == ".h5" else _named(path) or _hub_name(str(path)) or random_name(str(path))
    if path.is_dir():
        return _folder(path)
    if str(path).endswith(SOURCES):
        return f"{path} holds weights of another program, not a store; slice the model folder that it is in: {_slice(path.parent)}"
    return other_document(path, "a store", NO_STORE) if path.suffix == ".json" else None


def no_model(source: Path) -> str | None:
    """Say what is at `source`, and the next command, where that cannot be a model folder; None where it may be one."""
    if (closed := _closed(source)) is not None:
        return closed
    if source.is_file() and (str(source).endswith(SOURCES) or any((source.parent / name).is_file() for name in OUTER)):
        return f"{source} is a file of a model; name the folder that it is in: {_slice(source.parent)}"
    if not source.exists():
        return _hub_name(str(source)) or random_name(str(source))
    snapshots = _snapshots(source) or _snapshots(source / "hub")
    if snapshots and not (source / "config.json").exists():
        return f"{source} is a folder of the Hugging Face cache; the model is in a snapshot: {_slice(snapshots[0])}"
    if not any((source / name).exists() for name in OUTER) and (inner := _inner(source)):
        others = f", as {', '.join(one.name for one in inner[1:NAMED])} have" if inner[1:] else ""
        return f"{source} has no config.json; a folder in it has{others}: {_slice(inner[0])}"
    if not any((source / name).exists() for name in OUTER) and (stores := sorted(source.glob("*.h5"))):
        return f"{source} is a folder of {counted(len(stores), 'stores')}, not of a model; name one: {some(stores)}"
    return None


def no_file(path: Path) -> str:
    """Say why there is no store at `path`, where no file is, and how one is made whose name ends as that of a store does, or is copied."""
    link = dead_link(path)
    if path.exists():
        return f"{path} is no file; {NO_STORE}"
    if (WEIGHTS / path.name).is_file():
        return f"{path} not found; there is a store of that name: {WEIGHTS / path.name}"
    if link:
        return f"{path} cannot be read: {link}"
    if launched_rank():  # the first rank, which would speak before this one, has it
        return f"{path} not found; copy it here with: python -m hepti_mpi push {quote(str(path))} HOSTFILE, or run with --weights-cache"
    made = f"python -m hepti_mpi slice SOURCE {quote(str(path) if path.suffix == '.h5' else f'{path}.h5')}"
    return f"{path} not found; make it with: {made}"


def check_new(path: Path) -> None:
    """Raise StoreError where a store could not be written, or another file would be lost for it, before much is read."""
    if str(path).startswith("random:"):
        raise StoreError(f"{path} names a random model, no file; the source comes first: python -m hepti_mpi slice SOURCE STORE")
    if (path / "config.json").is_file():
        meant = f"python -m hepti_mpi slice {quote(str(path))} STORE"
        raise StoreError(f"{path} is a folder of a model, no file; the source comes first: {meant}")
    check_place(path, StoreError, making=True)
    try:
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(len(SIGNATURE)) != SIGNATURE:
                    raise StoreError(f"{path} is there and is no store: name another file for the new one")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {reason_of(error)}") from None
    if path.suffix.lower() != ".h5":
        raise StoreError(f"{path} does not end in .h5, by which stores are found: name it {path}.h5")


def _closed(path: Path) -> str | None:
    """Say why nobody can look at what is at `path`; None where one can, or nothing is there, and no link that leads nowhere."""
    try:
        if path.stat() and path.is_dir():
            with os.scandir(path):
                pass
    except (FileNotFoundError, NotADirectoryError):
        link = dead_link(path)
        return link and f"{path} cannot be read: {link}"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {reason_of(error)}"
    return None


def _folder(path: Path) -> str | None:
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        return f"{path} is a model folder, not a store; make a store of it with: {_slice(path)}"
    snapshots = _snapshots(path)
    if snapshots:
        return f"{path} is a folder of the Hugging Face cache, not a store; make a store of it with: {_slice(snapshots[0])}"
    if (path / FIRST_PART).is_file():
        parts = len(list(path.glob("rank*.h5")))
        return f"{path} holds the files of {counted(parts, 'ranks')}, not a whole store; name one of them, such as {path / FIRST_PART}"
    stores = sorted(path.glob("*.h5"))
    if any(CACHE_PART.fullmatch(one.name) for one in stores):
        return f"{path} is a --weights-cache: it has parts of stores, not a whole one; {NO_STORE}"
    if stores:
        return f"{path} is a folder of {counted(len(stores), 'stores')}; name one: {some(stores)}"
    snapshots = _snapshots(path / "hub")
    if snapshots:
        return f"{path} is the root of the Hugging Face cache, not a store; make a store of it with: {_slice(snapshots[0])}"
    inner = sorted((path / WEIGHTS).glob("*.h5"))  # what lies in other folders may be anybody's
    if inner:
        return f"{path} is a folder without a store, but {path / WEIGHTS} has {counted(len(inner), 'stores')}; name one: {some(inner)}"
    return f"{path} is a folder without a store; make one with: python -m hepti_mpi slice MODEL_FOLDER {WEIGHTS / 'model.h5'}"


def _snapshots(path: Path) -> list[Path]:
    """Return the model folders in a folder of huggingface_hub's cache."""
    return sorted(found.parent for how in (*CACHED, *BELOW * (path.name == "snapshots")) for found in path.glob(how))


def _inner(path: Path) -> list[Path]:
    """Return the model folders in a folder."""
    return sorted(found.parent for found in path.glob(BELOW[0]) if any(found.parent.glob("*.safetensors")))


def _named(path: Path) -> str | None:
    """Say where the store is whose name was given, without its folder and ending."""
    store = WEIGHTS / f"{path.name}.h5"
    return f"{path} not found; there is a store of that name: {store}" if store.is_file() else None


def _hub_name(text: str) -> str | None:
    if found := HUB.fullmatch(text):
        text = found[1]
    if not HUB_NAME.fullmatch(text) or Path(text).parent.is_dir():
        return None
    name = text.partition("/")[2]
    fetching = f"hf download {text} --local-dir models/{name}, then: {_slice(Path('models') / name)}"
    return f"{text} is no file here; if it is a model's name on the Hugging Face hub, from which nothing is fetched by itself: {fetching}"


def random_name(text: str) -> str | None:
    """Say how a store of a random model is made, with or without "random:" before its name; None where `text` cannot be one's."""
    from hepti_mpi.models.checkpoints.random import CONFIGS, PREFIX

    name = text.removeprefix(PREFIX)
    if name == text and name not in CONFIGS:
        return None
    made = f"make a store of it with: python -m hepti_mpi slice {quote(PREFIX + name)} {quote(str(_store_of(Path(name))))}"
    return f"{text} not found; a random model is called {PREFIX}{name}; {made}" if name == text else (
        f"{text} is a random model, not a store; {made}")  # fmt: skip


def _slice(folder: Path) -> str:
    return f"python -m hepti_mpi slice {quote(str(folder))} {quote(str(_store_of(folder)))}"


def _store_of(folder: Path) -> Path:
    """Return a good name for the store of a model folder, which in huggingface_hub's cache is named after a commit."""
    parts = [part for part in folder.absolute().parts if part.startswith("models--")]
    name = parts[-1].rpartition("--")[2] if parts else folder.absolute().name
    return WEIGHTS / f"{name or 'model'}.h5"


def other_document(path: Path, wanted: str, instead: str, own: str | None = None) -> str | None:
    """Say which document of ours is at `path` where something else is `wanted`, and the next command, `instead` where it is for none;
    None where it is none, or one of the kind `own`."""
    kind = _document(path)
    if kind is None or kind == own:
        return None
    one = "an" if kind[0] in "aeiou" else "a"
    return f"{path} is {one} {kind}, not {wanted}; {USES.get(kind, instead).format(quote(str(path)))}"


def _document(path: Path) -> str | None:
    """Return what kind of document of ours a JSON file is."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        form = json.loads(path.read_text()).get("format")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return form.removeprefix("hepti-").removesuffix("s") or None if isinstance(form, str) and form.startswith("hepti-") else None


def some(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:NAMED])) + ", ..." * (len(paths) > NAMED)
