"""How long messages between ranks take, as a profile has it: without MPI."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from hepti_mpi.comm import ranks
from hepti_mpi.comm.ranks import Comm


@pytest.mark.parametrize("latencies, slept", [([], 0.0), ([0.0, 0.0], 0.0), ([0.0, 2e-3], 2e-3)])
def test_a_message_takes_what_it_takes_and_what_its_link_does(latencies, slept, monkeypatch):
    """Who has no time to sleep does not: the system takes 75 us for that, and a message between ranks of one host 1."""
    now, asked = [0.0], []

    def sleep(seconds):
        asked.append(seconds)
        now[0] += seconds + 75e-6

    def moves(*args):
        now[0] += 5e-7

    monkeypatch.setattr(ranks, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    mpi, patience = SimpleNamespace(Send=moves, Recv=moves), SimpleNamespace(waiting=lambda who: nullcontext())
    comm = SimpleNamespace(rank=0, latencies=latencies, mpi=mpi, patience=patience)
    found = Comm.ping_pong(comm, 1, 20)
    assert found == pytest.approx(1e-6 + (slept + 75e-6 if slept else 0.0))
    assert 0.0 not in asked and set(asked) == {slept} - {0.0}
