import click
import pytest
from click.testing import CliRunner

from hepti_mpi.commands.main import main
from hepti_mpi.commands.options import BASELINES, LAYOUT_NAMES, OURS, PIPELINE, SHARES, Boards, Size
from hepti_mpi.commands.writing import refuse_for_text
from hepti_mpi.planning import baselines, methods
from hepti_mpi.planning.search import LEANER
from hepti_mpi.program.plan import LAYOUTS, Plan


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
    assert SHARES.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "0,0", "-1,2", "nan", "inf,1", "1e30", "1;2"])
def test_what_are_no_shares(text):
    with pytest.raises(click.BadParameter, match="is not a list of numbers such as"):
        SHARES.convert(text, None, None)


@pytest.mark.parametrize("text, expected", [("2.5,3.5", ("2.5", "3.5")), ("pi4", ("pi4",)), ("pi5, pi4*1.5", ("pi5", "pi4*1.5"))])
def test_boards(text, expected):
    assert Boards().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "a", "2,,3", "0.5,2", "0", "-2", "nan,2", "inf", "1001", "2;3", "2 3", "pi4*", "*2"])
def test_what_are_no_boards(text):
    with pytest.raises(click.BadParameter, match="is described|times slower"):
        Boards().convert(text, None, None)


@pytest.mark.parametrize("kind", [Size(), SHARES, Boards()])
def test_a_default_that_is_a_list_already_stays(kind):
    assert kind.convert((1, 2), None, None) == (1, 2)


def test_what_may_be_named_is_what_there_is():
    """The words are written down twice, so that --help needs no NumPy."""
    assert BASELINES == baselines.NAMES and set(OURS) | {"hepti", "hepti-float16", "hepti-int8"} == set(methods.OURS)
    assert methods.NAMES == (*methods.OURS, *BASELINES) and len(set(methods.NAMES)) == len(methods.NAMES)
    layouts = {tuple(name.split("/")) for name in LAYOUT_NAMES if name != PIPELINE}
    assert layouts == set(LEANER) and len(LAYOUT_NAMES) == len(layouts) + 1
    assert all(attention in LAYOUTS["attention"] and mlp in LAYOUTS["mlp"] for attention, mlp in layouts)
    assert {Plan.strategy_of(layout) for layout in layouts} == set(OURS)


def test_what_texts_have_no_use_for_is_refused_also_where_it_is_only_switched_on():
    refuse_for_text({"hidden": False, "adapt": None, "repeat": 1, "tolerance": 0.0, "strategy": "auto"})
    for given in ({"hidden": True}, {"adapt": True}, {"repeat": 2}):
        with pytest.raises(click.UsageError, match=f"generates text, which --{next(iter(given))} is not for yet"):
            refuse_for_text(given)


def test_a_second_input_is_not_passed_over():
    """The first was left unanswered without a word."""
    for words in (["run"], ["supervise", "hosts.txt", "--", "run"]):
        got = CliRunner().invoke(main, [*words, "--input", "a.png", "--input", "b.png"])
        assert got.exit_code == 2 and "--input is given 2 times, and one file or folder is answered: put all into one" in got.output
