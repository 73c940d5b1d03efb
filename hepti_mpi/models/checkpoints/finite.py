"""Numbers of a checkpoint's tensors with which no answer can be made: NaN and infinite ones. Knows arrays; knows no file and no model."""

import numpy as np

from hepti_mpi.errors import ModelError
from hepti_mpi.wording import counted


def check_finite(values: np.ndarray, where: str, held: np.ndarray) -> None:
    """Raise ModelError for float32 `values` that are not finite; `held`: what they are in the file, where they may be of another type."""
    if np.isfinite(values).all():
        return
    if np.isfinite(held).all():
        count = int((~np.isfinite(values)).sum())
        raise ModelError(f"{where} holds {counted(count, 'values')} too large for float32, in which everything is computed")
    count = int((~np.isfinite(held)).sum())
    what = f"{where} holds {counted(count, 'values')} not finite (NaN or infinite), with which there are no answers"
    raise ModelError(f"{what}; the file is damaged, or training went wrong: fetch or save it again")
