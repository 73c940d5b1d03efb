"""A GGUF file as a model that can be written into a store: what hf.py is for a folder.

Knows which parts of the file make up a model; knows no key, no tensor name and no token.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.models.checkpoints.ggml import GgmlType
from hepti_mpi.models.checkpoints.gguf import GgufFile
from hepti_mpi.models.checkpoints.ggufkeys import choosing_options
from hepti_mpi.models.checkpoints.ggufmodel import GgufModel
from hepti_mpi.models.checkpoints.gguftokens import gguf_tokens
from hepti_mpi.models.checkpoints.modelfiles import ModelFiles
from hepti_mpi.models.families.family import spec_of
from hepti_mpi.models.families.imports import match, plain_names, stored
from hepti_mpi.models.families.registry import FAMILIES, choose_task
from hepti_mpi.models.identity import source_hash
from hepti_mpi.models.spec import named_weights
from hepti_mpi.models.untrusted import is_file, read_small
from hepti_mpi.wording import counted

SUFFIX = ".gguf"


def gguf_path(source: Path) -> Path | None:
    """Return the GGUF file that `source` is, or that alone is in this folder without a config.json. Raises ModelError for several."""
    if source.suffix.lower() == SUFFIX and is_file(source):
        return source
    found = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() and not is_file(source / "config.json") else []
    if len(found) > 1:
        raise ModelError(f"{source} holds {len(found)} GGUF files; name one of them, such as {found[0]}")
    return found[0] if found else None


def read_gguf(path: Path) -> tuple[ModelFiles, list[GgmlType]]:
    """Return the model in a GGUF file, whose weights are read when they are asked for, and the types in it of fewer than 16 bits.

    Raises ModelError when it is damaged, hostile, or describes a model that is not supported.
    """
    file = GgufFile(path)
    model = GgufModel(file)
    own = path.parent / "tokenizer.json"
    tokens = gguf_tokens(file.metadata, read_small(own) if is_file(own) else None)
    words, rows = file.metadata["tokenizer.ggml.tokens"], model.config["vocab_size"]
    if len(words) > rows:
        raise ModelError(f"{path} has {counted(len(words), 'tokens')} and embeddings of {rows}")
    family = FAMILIES[model.config["model_type"]]
    plain = plain_names(family, model.shapes)
    fields, task = family.fields(model.config), choose_task(family, model.config, plain)
    back = task.steps(fields, (), model.config["tie_word_embeddings"])
    options = fields.pop("options", {}) | {"ends": list(tokens.ends)} | choosing_options(file.metadata)
    spec = spec_of(family, path.stem, task.head, fields, options=options, back=back)
    imports = match(family, spec, {short: model.shapes[name] for short, name in plain.items()})
    by_name = {one.name: one for one in imports}

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        for name, _ in named_weights(spec):
            one = by_name[name]
            yield name, stored(one, [model.read(plain[tensor]) for tensor in one.tensors])

    files = {"config.json": json.dumps(model.config, indent=1).encode()} | tokens.files
    return ModelFiles(spec, files, source_hash(spec, files, [*(one.derived for one in imports), *file.hashes()]), stream), file.reduced
