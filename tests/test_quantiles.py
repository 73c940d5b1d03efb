"""Medians and quantiles: NumPy's own."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

from hepti_mpi import quantiles
from hepti_mpi.quantiles import median, quantile


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_they_are_numpys(count, part):
    values = np.random.default_rng(count).standard_normal((3, count))
    for axis in (None, 0, 1):
        assert quantile(values, part, axis) == pytest.approx(np.quantile(values, part, axis), rel=1e-12)
        assert median(values, axis) == pytest.approx(np.median(values, axis), rel=1e-12)
    assert float(median(list(range(count)))) == np.median(range(count)) and doctest.testmod(quantiles).failed == 0


def test_what_is_no_number_is_told():
    assert np.isnan(median([1.0, np.nan, 2.0])) and list(np.isnan(median(np.array([[1.0, np.nan], [1, 2]]), axis=1))) == [True, False]


def test_they_import_nothing_that_is_slow():
    code = "import sys; from hepti_mpi.quantiles import median; median([1.0, 2.0]); sys.exit('numpy.ma' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
