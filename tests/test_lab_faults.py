"""One fault of each kind in the lab, under the supervisor: `python -m tests.lab experiment faults` does it a hundred times."""

import pytest
from lab import check
from lab.faults import KINDS, Round, one_round, undisturbed
from lab.lab import Lab
from lab.trials import inputs, sliced

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


def test_one_fault_of_each_kind(tmp_path):
    weights, source = sliced("tiny-bert", tmp_path / "tiny-bert.h5"), inputs(tmp_path / "in.npz", [12] * 300, 30)
    with Lab("bench5", share=[tmp_path]) as lab:
        usual = undisturbed(lab, weights, source, tmp_path)
        for kind, host in zip(KINDS, ("pi1", "pi2", "pi4", "pi1")):
            one = Round(kind, host, 4, 0.3)
            one_round(lab, one, weights, source, usual, tmp_path)
            assert not one.problems, one
            assert one.starts > 1 or kind == "SIGSTOP", one  # the fault was one
