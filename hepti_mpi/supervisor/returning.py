"""Whether a host that was lost is taken back. Pure: knows hosts and moments; asks nobody.

After its first loss that is as soon as it answers again. One that is lost again and again has to answer the longer before, and what was
long ago is forgotten: a service that runs for months loses each host many times.
"""

from hepti_mpi.cluster.hosts import Host

AGAIN_SECONDS, LONGER = 10.0, 1.5  # that a host has to answer after n losses: AGAIN x (LONGER ** (n - 1) - 1)
MOST_SECONDS = 3600.0
FORGOTTEN_SECONDS = 900.0  # in the job, in which half of a host's losses are forgotten
BLAMED = 8  # losses that one is worth of a host that is no good though it answers: nothing tells that it is well again
FOR_GOOD = float("inf")  # losses of one that cannot become well


def lose(host: Host, now: float, losses: float = 1) -> None:
    """Leave a host out."""
    host.losses = host.losses * 0.5 ** ((now - host.since) / FORGOTTEN_SECONDS) + losses
    host.lost, host.since = True, now


def take_back(host: Host, now: float) -> None:
    """Let a host have a part again."""
    host.lost, host.since = False, now


def heard(host: Host, answers: bool, now: float) -> None:
    """Note whether a host answers."""
    host.missed = 0 if answers else host.missed + 1
    if host.lost and not answers:
        host.since = now


def is_due(host: Host, now: float) -> bool:
    """Tell whether a host that is lost has answered for long enough to be taken back."""
    if not host.lost or host.missed or host.losses == FOR_GOOD:
        return False
    return now - host.since >= min(AGAIN_SECONDS * (LONGER ** min(host.losses - 1, 32) - 1), MOST_SECONDS)
