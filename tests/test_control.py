"""Control data of all sizes, around those that one message holds."""

import doctest
import json

from hepti_mpi.comm import control


def test_what_is_short_is_in_the_head():
    assert doctest.testmod(control).failed == 0
    for size in (1, 2, 20, control.SHORT_BYTES - 1, control.SHORT_BYTES, control.SHORT_BYTES + 1, 5000):
        content = json.dumps("x" * (size - 2) if size > 1 else 7).encode()
        head, rest = control.head_of(content), control.rest_of(content)
        assert len(content) == size and len(head) == control.HEAD_BYTES
        assert control.left(head) == len(rest) == max(0, size - control.SHORT_BYTES)
        assert control.value_of(head, rest) == json.loads(content)
