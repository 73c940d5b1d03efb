import click
import pytest

from hepti_mpi.options import Shares, Size


@pytest.mark.parametrize("text, expected", [
    ("500M", (500 << 20,)), ("1.5GiB", (3 << 29,)), ("200000", (200_000,)), ("7kb,8 m, 9G", (7 << 10, 8 << 20, 9 << 30)),
    ("1T", (1 << 40,)), ("12b", (12,)),
])  # fmt: skip
def test_sizes(text, expected):
    assert Size().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "M", "1X", "1,,2", "0", "-1", "inf", "nan", "1e30", "1 2"])
def test_what_is_no_size(text):
    with pytest.raises(click.BadParameter, match="is not a size"):
        Size().convert(text, None, None)


@pytest.mark.parametrize("text, expected", [("5,1,1,1", (5, 1, 1, 1)), ("0.5, 0", (0.5, 0)), ("7", (7,)), ("1e3,1", (1000, 1))])
def test_shares(text, expected):
    assert Shares().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "0,0", "-1,2", "nan", "inf,1", "1e30", "1;2"])
def test_what_are_no_shares(text):
    with pytest.raises(click.BadParameter, match="is not a list of numbers such as"):
        Shares().convert(text, None, None)
