"""Each family's folder, with the weights of all heads in one file, against what transformers makes of it (golden/make_families.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.families.registry import FAMILIES
from hepti_mpi.models.inputs.requests import read_requests
from hepti_mpi.models.inputs.tokens import Tokens
from hepti_mpi.models.reference import forward
from hepti_mpi.models.tasks.heads import apply_head, embed

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {"roberta": "roberta", "xlm-roberta": "xlm_roberta", "camembert": "camembert", "distilbert": "distilbert", "electra": "electra"}
CASES = [(kind, architecture) for kind in FOLDERS for architecture in FAMILIES[kind].architectures]


def results(folder, source):
    """What the model in `folder` makes of a file: (requests, results), each with its last hidden state."""
    model = read_model(folder)
    weights, requests = dict(model.weights()), read_requests(model.spec, model.files, str(source))
    arrays = {name: np.concatenate([request.arrays[name] for request in requests]) for name in requests[0].arrays}
    hidden = forward(model.spec, weights, embed(model.spec, weights, arrays), [request.rows for request in requests]).astype(np.float32)
    ends = np.cumsum([request.rows for request in requests])
    found = apply_head(model.spec, weights, model.files, hidden, requests, True)
    return requests, [one | {"last_hidden_state": rows} for one, rows in zip(found, np.split(hidden, ends))]


@pytest.mark.parametrize("kind, architecture", CASES)
def test_every_head(kind, architecture, tmp_path):
    folder = shutil.copytree(GOLDEN / FOLDERS[kind], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    golden = np.load(folder / "expected.npz")
    wanted = {"last_hidden_state": golden["expected_last_hidden_state"]}
    wanted |= {"logits": golden[f"expected_logits {architecture}"]} if f"expected_logits {architecture}" in golden else {}
    wanted |= {"pooler_output": golden["expected_pooler_output"]} if architecture.endswith(("RobertaModel", "CamembertModel")) else {}
    compared = set()
    if "Sequence" in architecture or "pooler_output" in wanted:  # they read position 0, so that it has to be there
        kept = golden["attention_mask"][:, 0] == 1
        arrays = {name: golden[name][kept] for name in golden.files if name.endswith(("_ids", "_mask"))}
        np.savez(folder / "expected.npz", **arrays)
        wanted = {name: values[kept] for name, values in wanted.items()}
    for row, (request, found) in enumerate(zip(*results(folder, folder / "expected.npz"))):
        for name, values in wanted.items():
            one = values[row] if values.ndim == 2 else values[row][request.keep]
            np.testing.assert_allclose(found[name], one, atol=1e-4, err_msg=f"{name} of row {row}")
            compared.add(name)
    assert compared == wanted.keys()


@pytest.mark.parametrize("kind", FOLDERS)
def test_texts(kind, tmp_path):
    folder = shutil.copytree(GOLDEN / FOLDERS[kind], tmp_path / "model")
    golden = json.loads((folder / "expected_text.json").read_text(encoding="utf-8"))
    tokens = Tokens(read_model(folder).files)
    asked = [[text] for text in golden["texts"]] + [golden["texts"][:2]]
    assert [tokens.encode(text, "a line").ids for text in asked] == golden["ids"]
    for name, content in golden["modules"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, golden["texts"])))
    _, found = results(folder, folder / "in.jsonl")
    np.testing.assert_allclose([one["embedding"] for one in found], golden["embeddings"], atol=1e-4)


def test_every_family_has_golden_folders():
    """Those whose layers are new have folders per head, see test_reference.py."""
    found = {json.loads(path.read_text())["model_type"] for path in GOLDEN.glob("*/config.json")}
    assert found == set(FAMILIES)
