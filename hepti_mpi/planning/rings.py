"""When blocks that go round a ring are where they are needed. Pure: knows times, blocks and links, no model.

Every rank sends its own block first and then passes on what comes from its left, piece by piece and in that order; it begins when its
own block is made, so that whatever has to pass a late rank waits for it.
"""

import numpy as np


def around(leave: np.ndarray, blocks: np.ndarray, hop: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Return when each rank has sent all that it sends to its right: every block but its right neighbour's.

    Per rank, of many rings at once [ranks, ...], `leave`: when its first block may leave; `blocks`: bytes of that block; `hop`: seconds per
    byte to its right neighbour; `piece`: seconds until the first piece of a block is there.

    >>> around(np.array([0.0, 0.0, 9.0]), np.array([3.0, 1.0, 2.0]), np.ones(3), np.zeros(3))
    array([11.,  4., 12.])
    """
    left = np.arange(-1, len(leave) - 1)
    begun, sent, came = leave, leave + blocks * hop, blocks
    for _ in range(len(leave) - 2):
        came = came.take(left, axis=0)  # from the left
        begun, before = np.maximum(sent, (begun + piece).take(left, axis=0)), sent
        sent = np.maximum(begun + came * hop, (before + piece).take(left, axis=0))
    return sent
