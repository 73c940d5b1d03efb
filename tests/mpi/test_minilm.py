"""The real all-MiniLM-L6-v2 on real sentences. HEPTI_MINILM names the folder of the model; tests/run.sh installs it and sets that."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from made_plans import plan_of
from test_answers import LAYOUTS, SHARES, desk_of, loaded, made_in

from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.serving.loop import answer
from hepti_mpi.serving.request import Question
from hepti_mpi.weights import writing
from hepti_mpi.weights.store import Store

GOLDEN = Path(__file__).parent.parent / "golden" / "minilm" / "expected_text.json"
COSINE = 0.99999


@pytest.fixture(scope="module")
def store(machine, folder):
    if "HEPTI_MINILM" not in os.environ:
        pytest.skip("HEPTI_MINILM does not name the folder of all-MiniLM-L6-v2; bash tests/run.sh installs it")
    path = made_in(folder) / "minilm.h5"
    if machine.world.rank == 0 and not path.exists():
        writing.write(path, read_model(Path(os.environ["HEPTI_MINILM"])))
    machine.world.barrier()
    return Store(path)


@pytest.mark.parametrize("layout", LAYOUTS, ids="/".join)
def test_embeddings_of_real_sentences(machine, folder, store, layout):
    golden, source = json.loads(GOLDEN.read_text()), folder / "texts.jsonl"
    plan = plan_of(store, layout, SHARES["uneven"](machine.world.size))
    ready = loaded(machine, store, plan)
    if machine.world.rank == 0:
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in golden["texts"]))
    requests, desk = desk_of(ready, source, 256, question=Question())
    answer(ready, desk)
    if machine.world.rank == 0:
        assert [request.arrays["ids"].tolist() for request in requests] == golden["input_ids"]
        got = np.array([result["embedding"] for result in desk.sink])  # [texts, hidden], unit length
        want = np.array(golden["embeddings"])
        cosines = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
        assert len(got) == len(golden["texts"]) and cosines.min() >= COSINE
