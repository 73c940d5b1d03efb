"""One fault of each kind in the lab, under the supervisor: `python -m tests.lab experiment faults` does it a hundred times."""

import pytest
from lab import check
from lab.faults import KINDS, Round, one_round, texts, undisturbed, vectors
from lab.lab import Lab

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")
OBSTACLE = check.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


@pytest.mark.parametrize("asked, requests, kinds", [(vectors, 300, KINDS), (texts, 12, ("kill -9",))])
def test_one_fault_of_each_kind(tmp_path, asked, requests, kinds):
    trial = asked(tmp_path, requests=requests)
    with Lab("bench5", share=[tmp_path]) as lab:
        usual = undisturbed(lab, trial, runs=1)  # how long it takes is of no use here
        for kind, host in zip(kinds, ("pi1", "pi2", "pi4", "pi1")):
            one = Round(kind, host, 4, 0.3)
            one_round(lab, one, trial, usual)
            assert not one.problems, one
            assert one.starts > 1 or kind == "SIGSTOP", one  # the fault was one
