"""Damaged files for every reader: each has to be read or refused in one sentence, soon, within little memory.

    python tests/fuzz.py --inputs 12000 --seed 1

Good files of every kind are damaged in many ways: bytes flipped, cut off, repeated or zeroed, numbers in JSON made huge. A process of its
own per kind reads them, with an address space that may grow by 256 MiB and 10 seconds a file. The last line is JSON.
"""

import argparse
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.hosts import read_hosts
from hepti_mpi.comm.channel import told
from hepti_mpi.errors import HeptiError
from hepti_mpi.models.checkpoints.gguffiles import read_gguf
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.models.inputs.text import Reading
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.search import choose
from hepti_mpi.program import placement as placements
from hepti_mpi.reporting.benches import read_benches
from hepti_mpi.serving.journal import Journal, journal_path
from hepti_mpi.serving.outputs import finished_answer
from hepti_mpi.supervisor.progress import State, read_state
from hepti_mpi.weights import writing
from hepti_mpi.weights.slices import whole_slices
from hepti_mpi.weights.store import Store

GOLDEN = Path(__file__).with_name("golden")
FAMILIES = ("roberta", "mpnet", "modernbert", "nomicbert", "distilbert", "electra", "dinov2_registers")
DECODERS = ("llama3", "gemma3", "phi3", "gpt2", "gpt_neox")
MEMORY, SECONDS = 256 << 20, 60
HUGE = (b"0", b"-1", b"1e999", b"4294967296", b"99999999999999999999", b"null", b"[]", b'"x"', b"NaN", b"true", b"1.5", b"{}",
        b"9" * 400)  # fmt: skip
ODD = tuple(bytes([value]) for value in (0, 1, 0x7F, 0x80, 0xFF))


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return `content` damaged in one to three ways."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        size = max(1, len(data))
        at = min(int(size * draw.random() ** draw.choice((1, 3))), size - 1)  # often near the beginning, where formats say what follows
        kind = draw.randrange(7)
        if kind == 0:
            for _ in range(draw.randint(1, 8)):
                if data:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + 1] = draw.choice(ODD) * draw.choice((1, 2, 4, 8))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.randint(1, 64)]
        elif kind == 4:
            data[at:at] = data[at : at + draw.randint(1, 4096)] * draw.randint(1, 3)
        elif kind == 5:
            length = draw.choice((2, 4, 8))
            data[at : at + length] = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)).to_bytes(8, "little")[:length]
        else:  # a number or a word of JSON
            places = [place for place in range(min(len(data), 1 << 16)) if data[place : place + 1].isdigit()]
            if places:
                first = last = draw.choice(places)
                while last < len(data) and data[last : last + 1] in b"0123456789.e-+":
                    last += 1
                data[first:last] = draw.choice(HUGE)
    return bytes(data)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files below a model folder, without what is expected of it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith("expected")}  # fmt: skip


def small_llama() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (metadata, tensors) of a GGUF file with one layer."""
    words = ["<s>", "</s>", "<pad>", *map(chr, range(33, 127)), "ab"]
    sizes = {"block_count": 1, "embedding_length": 16, "attention.head_count": 2, "attention.head_count_kv": 1, "feed_forward_length": 24,
             "context_length": 32}  # fmt: skip
    said = {"general.architecture": "llama"} | {f"llama.{name}": one for name, one in sizes.items()}
    said |= {"llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
             "tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 1}  # fmt: skip
    shapes = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16),
              "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24)}  # fmt: skip
    shapes = {f"blk.0.{name}": shape for name, shape in shapes.items()} | {"token_embd": (len(words), 16), "output_norm": (16,)}
    return said, {f"{name}.weight": np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}


class Kind:
    """Files of one kind: good ones, and how they are read."""

    def __init__(self, name: str, good: dict[str, bytes], read: Callable[[Path], Any], target: str | None = None) -> None:
        """`good`: files of a folder; `target`: the one that is damaged, left out: the only one. `read` gets that one's path."""
        self.name, self.good, self.read, self.target = name, good, read, target or next(iter(good))


def kinds(folder: Path) -> list[Kind]:
    """Make good files of all kinds below `folder`."""
    model = random_model("tiny-bert")
    writing.write(folder / "tiny.h5", model)
    formats = {"": "q8", "layers.0": "q4", "layers.0.attention.o": "f16"}
    writing.write(folder / "reduced.h5", replace(model, spec=replace(model.spec, formats=formats)))
    bert, vit, sentence = (files_of(GOLDEN / name) for name in ("bert", "vit", "bert_sentence"))
    sys.path.insert(0, str(Path(__file__).parent))
    import decoders
    from clusters import cluster
    from gguf_files import gguf
    from made_benches import bench

    profile = cluster((3.0, 2.0, 1.0))
    choice = choose(model.spec, model.source_hash, profile, Demand(32)).chosen.plan
    words, images = random_model("tiny-bert"), random_model("tiny-vit")
    arrays, picture, large = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(arrays, input_ids=np.ones((3, 9), np.int64), attention_mask=np.ones((3, 9), np.int64))
    np.savez_compressed(large, input_ids=np.ones((3, 9), np.int64))
    Image.fromarray(np.arange(3 * 40 * 30, dtype=np.uint8).reshape(40, 30, 3)).save(picture, "PNG")
    pictures = {name: io.BytesIO() for name in ("jpeg", "webp", "bmp", "gif", "tiff", "avif", "ico")}
    for name, made in pictures.items():
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(made, name)
    head = {"model": "m", "source_hash": "s", "input_hash": "i"}
    journal = Journal(journal_path(folder / "j.jsonl"), head, 3, False)
    journal.add([0, 2], [finished_answer({"input": "x", "embedding": [0.5]})] * 2)

    def ask(of: Any) -> Callable[[Path], Any]:
        return lambda path: read_requests(of.spec, of.files, str(path), reading=Reading(strict=True))

    def built_in(path: Path) -> None:
        model = read_model(path.parent)
        read_requests(model.spec, model.files, None)

    def built_in_sentence(path: Path) -> None:
        built_in(path.parent)

    def store(path: Path) -> None:
        with Store(path) as opened:
            pieces = whole_slices(opened.spec)
            opened.verify(pieces)
            for piece in pieces:
                piece.decode(opened.parts(piece))

    def lines(path: Path) -> None:
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            told("\x1e" + line)

    return [
        Kind("store", {"tiny.h5": (folder / "tiny.h5").read_bytes()}, store),
        Kind("reduced store", {"tiny.h5": (folder / "reduced.h5").read_bytes()}, store),
        Kind("safetensors", bert, lambda path: list(read_model(path.parent).weights()), "model.safetensors"),
        Kind("config", bert, lambda path: read_model(path.parent), "config.json"),
        *(Kind(f"{name} config", files_of(GOLDEN / name), lambda path: read_model(path.parent), "config.json") for name in FAMILIES),
        *(Kind(f"{name} config", files_of(decoders.write_folder(name, folder)), lambda path: read_model(path.parent), "config.json")
          for name in DECODERS),
        Kind("gguf", {"m.gguf": gguf(*small_llama())}, lambda path: list(read_gguf(path)[0].weights())),
        *(Kind(name, sentence, built_in_sentence if "/" in file else built_in, file) for name, file in (
            ("modules", "modules.json"), ("pooling", "1_Pooling/config.json"), ("sentence config", "sentence_bert_config.json"),
            ("tokenizer config", "tokenizer_config.json"))),
        Kind("tokenizer", bert, built_in, "tokenizer.json"),
        Kind("image config", vit, lambda path: read_model(path.parent), "config.json"),
        Kind("preprocessor", vit, built_in, "preprocessor_config.json"),
        Kind("plan", {"p.json": json.dumps(placements.whole(choice).to_json()).encode()}, placements.load),
        Kind("profile", {"p.json": json.dumps(profile.to_json()).encode()}, profiles.load),
        Kind("state", {"s.json": json.dumps(State([1, 2], [profile]).to_json()).encode()}, read_state),
        Kind("journal", {"j.jsonl.journal": journal.path.read_bytes()}, lambda path: Journal(path, head, 3, True).file.close()),
        Kind("progress", {"p.txt": b'{"kind": "answers", "places": [1], "finished": [{}], "seconds": 0.5}\n' * 3}, lines),
        Kind("hostfile", {"h.txt": b"pi1 slots=4\n# a board\npi2 slots=1\n10.0.0.3 slots=2\n"}, read_hosts),
        Kind("npz", {"in.npz": arrays.getvalue()}, ask(words)),
        Kind("compressed npz", {"in.npz": large.getvalue()}, ask(words)),
        Kind("text", {"in.txt": "a small boat\ncrossed the river ü\n".encode()}, ask(words)),
        Kind("text lines", {"in.jsonl": b'{"text": "a small boat"}\n"crossed"\n'}, ask(words)),
        Kind("table", {"in.csv": b'id,text,text_pair\n7,"a ""small"" boat",the river\n8,crossed,"it,\nthen"\n'}, ask(words)),
        *(Kind(name, {f"x.{name}": made.getvalue()}, ask(images)) for name, made in ({"png": picture} | pictures).items()),
        Kind("records", {"r.jsonl": "".join(json.dumps(line) + "\n" for line in bench("mixed4", ("hepti", "ram"))).encode()}, read_benches),
    ]  # fmt: skip


def blank_png(side: int) -> bytes:
    """Return a sound gray picture of `side` x `side` pixels, all black."""
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def packed_array(shape: tuple[int, int], size: int) -> bytes:
    """Return an .npz whose input_ids say they have `shape` and hold `size` bytes of zeros."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("input_ids.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    return packed.getvalue()


DEEP = b"[" * 200_000
BOMBS: list[tuple[str, str, Callable[[], bytes]]] = [  # (kind, file name, what makes the content) of small files that say they are huge
    ("png", "x.png", lambda: blank_png(11500)), ("npz", "in.npz", lambda: packed_array((1 << 15, 1 << 10), 1 << 28)),
    ("npz", "in.npz", lambda: packed_array((1 << 16, 1 << 10), 1 << 26)), ("npz", "in.npz", lambda: gzip.compress(bytes(1 << 20))),
    *((kind, name, lambda: DEEP) for kind, name in (
        ("plan", "p.json"), ("profile", "p.json"), ("state", "s.json"), ("config", "config.json"), ("tokenizer", "tokenizer.json"),
        ("modules", "modules.json"), ("tokenizer config", "tokenizer_config.json"), ("llama3 config", "config.json"))),
    ("journal", "j.jsonl.journal", lambda: DEEP + b"\n"),
    ("safetensors", "model.safetensors", lambda: (1 << 62).to_bytes(8, "little") + b"{}"),
    ("gguf", "m.gguf", lambda: b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)),
    ("gguf", "m.gguf", lambda: b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 100_000),
]  # fmt: skip


def attack(kind: Kind, inputs: int, seed: int, folder: Path) -> list[str]:
    """Read `inputs` damaged files of one kind in this process; return what went wrong."""
    folder.mkdir()
    for name, content in kind.good.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    path, draw, wrong = folder / kind.target, random.Random(seed), []
    extra = [make() for name, file, make in BOMBS if name == kind.name and file == kind.target]
    problem = _read(kind, path, good=True)  # loads what is loaded once
    if problem:
        return [f"{kind.name}: {problem}"]
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for number in range(inputs):
        content = extra[number] if number < len(extra) else damaged(kind.good[kind.target], draw)
        path.write_bytes(content)
        begin = time.monotonic()
        problem = _read(kind, path)
        if time.monotonic() - begin > SECONDS:
            problem = f"took {time.monotonic() - begin:.1f} s"
        if problem:
            wrong.append(f"{kind.name} {seed}:{number}: {problem}")
            shutil.copy(path, Path(tempfile.gettempdir()) / f"hepti-fuzz-{kind.name.replace(' ', '-')}-{number}")
    return wrong


def _read(kind: Kind, path: Path, good: bool = False) -> str | None:
    """Return what is wrong with how a file was read, None if nothing is; `good`: it is sound, and not to be refused."""
    signal.alarm(2 * SECONDS)
    try:
        kind.read(path)
    except HeptiError as error:
        if _memory_ran_out(error):
            return f"memory ran out: {error}"
        if good:
            return f"a sound file is refused: {error}"
        return None if "\n" not in str(error) and str(error) else f"no sentence: {str(error)!r}"
    except BaseException as error:  # noqa: BLE001  whatever comes out but a sentence is wrong
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
    return None


def _memory_ran_out(error: BaseException | None) -> bool:
    """Tell whether a sentence hides that more memory was asked for than there is."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__context__
    return False


def fuzz(inputs: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Read `inputs` damaged files in all; return how many of each kind, and what went wrong."""
    counts, wrong = {}, []
    with tempfile.TemporaryDirectory(prefix="hepti-fuzz-") as name:
        every = kinds(Path(name))
        for number, kind in enumerate(every):
            counts[kind.name] = inputs // len(every) + (number < inputs % len(every))
            wrong += attacked(kind, counts[kind.name], seed, Path(name) / f"kind{number}")
    return counts, wrong


def attacked(kind: Kind, inputs: int, seed: int, folder: Path) -> list[str]:
    """Do `attack` in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries that warn
            os.write(writing, json.dumps(attack(kind, inputs, seed, folder)[:50]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else [f"{kind.name}: the process ended with status {status}"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged files of every kind.")
    parser.add_argument("--inputs", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts, wrong = fuzz(options.inputs, options.seed)
    for line in wrong:
        print(line)
    print(json.dumps({"format": "hepti-fuzz", "inputs": counts, "total": sum(counts.values()), "wrong": len(wrong)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
