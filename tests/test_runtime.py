"""Which versions of ONNX Runtime do what is asked of them, and what is done where one does not."""

import subprocess
import sys

import numpy as np
import pytest
from layers import MADE

from hepti_mpi.engine import kernels, opening, runtime, sessions
from hepti_mpi.engine.alone import last_hidden_state
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.program.plan import Plan
from hepti_mpi.program.steps import Compute
from hepti_mpi.weights import writing
from hepti_mpi.weights.prepacked import Prepacked
from hepti_mpi.weights.slices import Part
from hepti_mpi.weights.store import Store


@pytest.mark.parametrize("text, found", [("1.23.0", (1, 23)), ("1.32.0", (1, 32)), ("1.24.0rc1+cpu", (1, 24)), ("2.0.1", (2, 0))])
def test_versions(text, found):
    assert runtime.version(text) == found


@pytest.mark.parametrize("name", ["f32", "q8"])
@pytest.mark.parametrize("case", [*MADE, "llama", "llama_groups", "mistral"])
def test_attention_in_parts(store_of, monkeypatch, case, name):
    """As by ONNX's operator, which not every version has in order, without a node that is as young. Of q8 a number that lies between two
    steps may be rounded to either."""
    store, lengths = store_of(case, name), (2, 5, 4, 6)
    rows = np.random.default_rng(1).standard_normal((sum(lengths), store.spec.hidden), np.float32)
    wanted, opsets, model = last_hidden_state(store, rows, lengths), [], opening.model_of
    monkeypatch.setattr(kernels, "ATTENDS", False)
    monkeypatch.setattr(opening, "model_of", lambda graph: opsets.append(model(graph).opset_import[0].version) or model(graph))
    np.testing.assert_allclose(last_hidden_state(store, rows, lengths), wanted, atol={"f32": 1e-5, "q8": 0.02}[name] * np.abs(wanted).max())
    assert opsets and max(opsets) < 23


@pytest.mark.parametrize("name", ["f32", "q8"])
def test_no_files_of_packed_weights_that_cannot_be_used(tmp_path, monkeypatch, name):
    """It is said once; weights are in memory, or mapped from the store."""
    said, folder = [], tmp_path / "kept"
    monkeypatch.setattr(sessions, "KEEPS_PACKED", False)
    writing.write(tmp_path / "s.h5", random_model("tiny-bert").in_format(name))
    with Store(tmp_path / "s.h5", Prepacked(folder, said.append)) as store:
        part = Part(store.spec, Plan.lone(store.spec, store.source_hash, mode="mapped"), 0)
        steps = [step for step in part.program if isinstance(step, Compute)]
        for step in steps:
            assert sessions.build(step, store, part.held(step), part.heads, "mapped", 1).session is not None
    assert len(said) == 1 and "onnxruntime" in said[0] and not folder.exists()


OPENED = """
import sys
from pathlib import Path
from hepti_mpi.commands.options import Machinery
from hepti_mpi.commands.session import opened
from hepti_mpi.engine import runtime

runtime.KEEPS_PACKED = sys.argv[2] == "yes"
found = opened(Machinery(1, None, 0.0), Path(sys.argv[1]), Path(sys.argv[1]).parent / "cache")
print(found.keeps, "onnxruntime" in sys.modules)
"""


@pytest.mark.parametrize("kept, said", [("yes", "True False"), ("no", "False False")])
def test_the_planner_counts_on_files_that_can_be_used(tmp_path, kept, said):
    """It is known without ONNX Runtime, which ranks that rest do not import."""
    writing.write(tmp_path / "s.h5", random_model("tiny-bert"))
    found = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path / "s.h5"), kept], capture_output=True, text=True, check=False)
    assert found.stdout.split("\n")[0] == said, found.stderr
