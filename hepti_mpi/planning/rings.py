"""When blocks that go round a ring are where they are needed. Pure: knows times, blocks and links, no model.

Every rank sends its own block first and then passes on what comes from its left, piece by piece and in that order; it begins when its
own block is made, so that whatever has to pass a late rank waits for it.
"""

import numpy as np


def around(
    begin: np.ndarray, leave: np.ndarray, blocks: np.ndarray, links: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return when each rank has sent all that it sends to its right, every block but its right neighbour's, on a link that has not rested,
    and when all of that is there.

    Per rank, of many rings at once [ranks, ...], `begin`: when its first block is made; `leave`: when its link may take that, which is
    later where it has other things to send; `blocks`: bytes of that block; `links`: seconds per byte to its right neighbour, seconds until
    the first piece of a block is there, and those that the link is ahead when it has rested: so much sooner all is there.

    >>> start, never = np.array([0.0, 0.0, 9.0]), np.zeros(3)
    >>> around(start, start, np.array([3.0, 1.0, 2.0]), (np.ones(3), never, never))
    (array([11.,  4., 12.]), array([11.,  4., 12.]))
    """
    (hop, piece, ahead), left = links, np.arange(-1, len(leave) - 1)
    begun, sent, came = leave, leave + blocks * hop, blocks
    first, last = np.maximum(begin, begun + piece - ahead), np.maximum(begin, sent - ahead)  # of a block to be at the right neighbour
    for _ in range(len(leave) - 2):
        came, first, last = came.take(left, axis=0), first.take(left, axis=0), last.take(left, axis=0)  # from the left
        begun = np.maximum(sent, first)
        sent = np.maximum(begun + came * hop, last + piece)
        first = np.maximum(np.maximum(first, begin), begun + piece - ahead)  # what has to pass a rank waits until that has its own
        last = np.maximum(np.maximum(last, begin), sent - ahead)
    return sent, last
