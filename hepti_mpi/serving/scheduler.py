"""Which requests are answered together. Knows rows; does not know what is in them, nor how they are answered."""

from collections.abc import Sequence

from hepti_mpi.errors import InputError
from hepti_mpi.models.inputs.requests import Request
from hepti_mpi.planning.memory import PADDED_SCORES


def batches(lengths: Sequence[int], most_rows: int, hidden: int) -> list[list[int]]:
    """Pack requests of similar length into batches of at most `most_rows` rows, as lists of indices; a longer one goes alone.

    Rows are packed end to end, so products pay for no padding; only attention works on [requests, longest], and a batch ends
    where that would add more than PADDED_SCORES x rows x hidden to its scores.

    >>> batches([3, 4, 9, 1], 8, 1000)
    [[2], [1, 0, 3]]
    """
    result: list[list[int]] = []
    rows = scores = longest = 0
    for index in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = lengths[index]
        padding = (len(result[-1]) + 1) * longest**2 - scores - length**2 if result else 0
        if not result or rows + length > most_rows or padding > PADDED_SCORES * (rows + length) * hidden:
            result.append([])
            rows, scores, longest = 0, 0, length
        result[-1].append(index)
        rows, scores = rows + length, scores + length**2
    return result


def typical_rows(requests: Sequence[Request], batch_rows: int, hidden: int) -> dict[str, int]:
    """Return what the plan is made for, under the names of planning.search.Request: rows of the median batch and the median request,
    which are priced, and of the largest batch and the longest request, which memory must hold."""
    lengths = sorted(request.rows for request in requests)
    sizes = sorted(sum(lengths[index] for index in part) for part in batches(lengths, batch_rows, hidden))
    if not sizes:
        raise InputError("the input is empty: there is nothing to answer")
    return {"rows": sizes[len(sizes) // 2], "attended": lengths[len(lengths) // 2], "largest": sizes[-1], "longest": lengths[-1]}
