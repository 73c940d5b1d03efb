"""Described boards: what the file must say, what a board's call takes, and plans for boards that nobody has."""

import json
import re

import pytest
from click.testing import CliRunner

from hepti_mpi.cluster.boards import BOARDS, FIGURES, ROWS, SOURCES, cluster_of, read_boards
from hepti_mpi.cluster.profile import from_json
from hepti_mpi.commands import main
from hepti_mpi.errors import ProfileError
from hepti_mpi.models.checkpoints.random import LLAMA, make_spec
from hepti_mpi.models.spec import reduced
from hepti_mpi.planning import texts
from hepti_mpi.planning.demand import Demand

GOOD = """[b]
title = "a board"
cores = 4
memory_gib = 4
float32_gflops = 20
int8_gops = 20
int4_gops = 20
memory_gbs = 4
call_us = 30
[b.source]
float32_gflops = "measured: x"
int8_gops = "derived: x"
int4_gops = "derived: x"
memory_gbs = "published: x"
call_us = "derived: x"
"""


def test_every_figure_has_a_source():
    for board in read_boards().values():
        assert set(board.sources) == set(FIGURES)
        assert all(text.partition(":")[0] in SOURCES for text in board.sources.values())


def test_figures_that_say_how_they_were_derived_come_out_of_it():
    """Twice a published HPL, half of that, and parts of the Pi 4 B: what stands there and the figure are the same but for rounding."""
    known = read_boards()
    for board in known.values():
        source = board.sources["float32_gflops"]
        twice = re.match(r"derived: twice (half )?(?:its HPL|the HPL of four such cores), ([\d.]+) GFLOP/s", source)
        if twice is not None:
            assert board.float32 == pytest.approx(2e9 * float(twice[2]) / (2 if twice[1] else 1), rel=0.01), board.name
        for key, value in (("int8_gops", board.int8), ("int4_gops", board.int4)):
            if board.sources[key].startswith("derived: as float32"):
                assert value == board.float32
            elif board.sources[key].startswith("derived: as int8"):
                assert value == board.int8
            elif times := re.match(r"derived: ([\d.]+) times float32", board.sources[key]):
                assert value == pytest.approx(float(times[1]) * board.float32, rel=0.02), board.name
    pi3, pi4, pi5 = (known[name] for name in ("pi3", "pi4", "pi5"))
    assert pi3.float32 == pi4.float32 * 3 / 8 and pi3.memory == pytest.approx(pi4.memory / 2, rel=0.05)
    assert pi3.call_seconds == pytest.approx(2 * pi4.call_seconds) and pi5.call_seconds == pytest.approx(pi4.call_seconds / 2)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("cores = 4", "cores = 0", "cores is 0"),
        ("cores = 4", "cores = 1.5", "cores is a whole number"),
        ("cores = 4\n", "", "look at cores"),
        ("memory_gbs = 4\n", "memory_gbs = 4\nspeed = 3\n", "look at speed"),
        ('int8_gops = "derived: x"', 'int8_gops = "guess"', "source of int8_gops"),
        ('int8_gops = "derived: x"\n', "", "wants a line for each"),
        ("[b]", "[B_]", "no name for a board"),
        ("cores = 4", "cores = ", "cannot be read"),
    ],
)
def test_a_file_with_a_mistake(tmp_path, old, new, said):
    file = tmp_path / "boards.toml"
    file.write_text(GOOD)
    assert read_boards(file)["b"].memory_bytes == 4 << 30
    file.write_text(GOOD.replace(old, new).replace("[b.source]", "[B_.source]" if new == "[B_]" else "[b.source]"))
    with pytest.raises(ProfileError, match=said):
        read_boards(file)


def test_a_product_is_bound_by_reading_or_by_arithmetic():
    board = read_boards()["pi4"]
    weights = 12.6e6
    assert board.product_seconds(1, weights) == pytest.approx(weights * 4 / board.memory, rel=0.1)
    assert board.product_seconds(4096, weights) == pytest.approx(2 * 4096 * weights / board.float32, rel=0.02)
    times = [board.product_seconds(rows, weights) for rows in ROWS]
    assert times == sorted(times)
    assert board.product_seconds(1, weights, "q4") < times[0] / 4


def test_a_cluster_of_described_boards():
    profile = cluster_of(["pi5", "pi4", "pi4"], 80.0, 5e-3, (1024, 4096))
    assert profile.hosts == ("pi5-1", "pi4-1", "pi4-2")
    assert profile.bytes_per_second[0][1] == 10e6 and profile.bytes_per_second[1][1] == 0
    assert profile.latency_seconds[2][0] == 5e-3
    assert profile.versions == {BOARDS: "pi5,pi4,pi4"}
    assert from_json(json.loads(json.dumps(profile.to_json()))) == profile
    assert cluster_of(["pi4"], 80.0, 5e-3, (8, 8)).exchange_seconds == 0


# of distributed-llama's README: ms of a token of Llama-2-7B in 4 bits, by how many boards there are on 1 Gbit/s
PUBLISHED = {"pi4": {1: 1312, 2: 794, 4: 494}, "pi5": {1: 441, 2: 341, 4: 219}}
LLAMA_2_7B = LLAMA | {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "num_key_value_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096}  # fmt: skip


@pytest.mark.parametrize("board, count", [(board, count) for board, every in PUBLISHED.items() for count in every])
def test_a_token_takes_described_boards_what_others_published_of_such_boards(board, count):
    """Another program's: how it reads weights and waits for sums is its own, so that they need not be the same."""
    spec = reduced(make_spec("llama-2-7b", LLAMA_2_7B), "q4")
    profile = cluster_of([board] * count, 940.0, 200e-6, (spec.hidden, spec.ffn), spec.product_formats)
    demand = Demand(1, 40, 32, 32, limits=(1 << 40,) * count, mode="packed", kept=48, prompt=32, answer=16)
    seconds = texts.decide("tensor" if count > 1 else "single", spec, "hash", profile, demand).seconds
    print(f"{count} {board}: {1e3 * seconds:.0f} ms a token, {PUBLISHED[board][count]} published")
    assert seconds == pytest.approx(1e-3 * PUBLISHED[board][count], rel=0.15)


def test_an_unknown_board_is_answered_with_the_list():
    with pytest.raises(ProfileError, match="no board 'pi9' is described; boards: pi3, pi4, pi5.*as in pi4,pi4,pi5"):
        cluster_of(["pi4", "pi9"], 80.0, 5e-3, (8, 8))


def plan(*words):
    result = CliRunner().invoke(main.main, ["plan", "--weights", "random:bert-large", *words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_four_pi4_answer_sooner_than_one_and_sources_are_told():
    said = plan("--boards", "pi4,pi4,pi4,pi4", "--mbit", "940", "--json")
    head, document = said[: said.index("{")], json.loads(said[said.index("{") :])
    seconds = {candidate["ranks"]: candidate["seconds"] for candidate in reversed(document["candidates"])}
    assert seconds[4] < 0.4 * seconds[1]
    assert "-0.0," not in said and "-0.0]" not in said  # what equal boards wait for each other is nothing, not a little less
    assert 3.3 < seconds[1] < 4.0  # what BERT-Large takes on one Pi 4, by its published speeds
    assert "derived: twice its HPL" in head or not head


def test_a_board_is_known_by_its_name_in_any_case():
    told = plan("--boards", "Pi4, PI5").split("\nplan ")[1].split("planned")[0]
    assert told == plan("--boards", "pi4,pi5").split("\nplan ")[1].split("planned")[0]


def test_a_slow_network_makes_one_board_the_best():
    assert "plan" in plan("--boards", "pi5,pi4", "--mbit", "2", "--latency-us", "9000")


def test_profile_or_boards():
    with pytest.raises(Exception, match="--profile and --entry are of ranks that were measured, --boards of described ones"):
        plan("--boards", "pi4", "--profile", "x.json")


@pytest.mark.parametrize("model, keys", [("tiny-bert", ("board_seconds",)), ("tiny-llama", ("board_seconds", "board_token_seconds"))])
def test_inspect_and_plan_say_the_same_of_one_board(tmp_path, model, keys):
    """Of a text inspect left out the words, without saying so."""
    store = str(tmp_path / "a.h5")
    assert CliRunner().invoke(main.main, ["slice", f"random:{model}", store]).exit_code == 0
    told = json.loads(CliRunner().invoke(main.main, ["inspect", store, "--json"]).stdout)
    rows, shown = str(told["board_rows"]), CliRunner().invoke(main.main, ["inspect", store]).stdout
    assert ("first token ms" in shown) == (len(keys) == 2)
    words = ["plan", "--weights", store, "--boards", "pi4", "--rows", rows, "--weights-mode", "packed", "--json"]
    planned = json.loads(CliRunner().invoke(main.main, words).stdout.splitlines()[-1])
    seconds = [planned["first_token_seconds"], planned["token_seconds"]] if len(keys) == 2 else [planned["plan"]["predicted_seconds"]]
    assert [told[key]["pi4"] for key in keys] == pytest.approx(seconds, rel=1e-3)
