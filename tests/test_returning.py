"""When a host that was lost is taken back."""

import pytest

from hepti_mpi.cluster.hosts import Host
from hepti_mpi.supervisor.returning import BLAMED, FOR_GOOD, FORGOTTEN_SECONDS, heard, is_due, lose, take_back


def lost(moments, losses=1, present=1):
    """Return a host that was lost at these moments, each time after it was there for so many seconds."""
    host = Host("pi1")
    for moment in moments:
        if host.lost:
            take_back(host, moment - present)
        lose(host, moment, losses)
    return host


@pytest.mark.parametrize("moments, wait", [([0], 0), ([0, 1], 5), ([0, 1, 2], 12.5), ([0, 1, 2, 3], 23.75), (range(40), 3600)])
def test_who_is_lost_often_has_to_answer_longer(moments, wait):
    host, last = lost(moments), list(moments)[-1]
    heard(host, True, last + 1)
    assert is_due(host, last + 1.01 * wait) and (not wait or not is_due(host, last + 0.9 * wait))
    heard(host, False, last + 5000)  # what it answered before is no more
    heard(host, True, last + 5001)
    assert is_due(host, last + 5000 + 1.01 * wait) and (not wait or not is_due(host, last + 5000 + 0.9 * wait))


def test_what_was_long_ago_is_forgotten():
    host = lost([10 * FORGOTTEN_SECONDS * number for number in range(20)], present=9 * FORGOTTEN_SECONDS)
    heard(host, True, host.since)
    assert host.losses < 1.01 and is_due(host, host.since + 1)


def test_who_does_not_answer_or_cannot_become_well_is_not_due():
    host = lost([0])
    heard(host, False, 1)
    assert not is_due(host, 1e6)
    for losses, due in ((BLAMED, True), (FOR_GOOD, False)):
        host = lost([0], losses)
        assert not is_due(host, 60) and is_due(host, 4000) is due
    take_back(host, 1)
    assert not is_due(host, 1e6)
