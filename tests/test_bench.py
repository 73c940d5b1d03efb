import click
import pytest

from hepti_mpi.commands.bench import MOST_ROWS, Sizes, checked_layers
from hepti_mpi.errors import InputError
from hepti_mpi.models.checkpoints.random import CONFIGS, make_spec


def test_sizes_of_requests():
    assert Sizes().convert("128", None, None) == ((128, None),)
    assert Sizes().convert("128, 64:6,384:6,128", None, None) == ((128, None), (64, 6), (384, 6))


@pytest.mark.parametrize("text", ["", "0", "-1", "12.5", "64:", "64:0", "64:x", ":6", "64:6:7", "128,,64", str(MOST_ROWS + 1)])
def test_no_sizes(text):
    with pytest.raises(click.BadParameter, match="is no number of rows from 1 to"):
        Sizes().convert(text, None, None)


def test_no_more_layers_than_there_are():
    spec = make_spec("tiny-bert", CONFIGS["tiny-bert"])
    assert checked_layers(spec, spec.layers) == spec.layers
    with pytest.raises(InputError, match=f"{spec.layers + 1} layers"):
        checked_layers(spec, spec.layers + 1)
