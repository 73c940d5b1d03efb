"""When a change is told: how seldom wrongly, and how soon, for values that scatter as measured ones do."""

import math

import numpy as np
import pytest

from hepti_mpi.tuning.cusum import AGREE, BETWEEN, Chart, Level, Recent

MANY = 20_000  # values of a made-up series


def series(draw, count, scatter, kind):
    """Values about 0 with a mean distance of `scatter`: by Laplace's law, with still heavier tails, or each like the one before (`kind` is
    their correlation)."""
    values = draw.standard_t(2.5, count) if kind == "heavy" else draw.laplace(0, 1, count)
    if isinstance(kind, float):
        for place in range(1, count):
            values[place] += kind * values[place - 1]
    return values * scatter / np.abs(values).mean()


def alarms(values, charts=4, grain=0.0):
    """Where a chart tells a change in values whose level it learns; it begins anew after each."""
    chart, level, found = Chart(charts), Level(), []
    for place, value in enumerate(values):
        chart.add(value - level.at("all"), grain)
        level.learn("all", value, 3 * chart.scatter)
        if chart.alarm:
            found.append(place)
            chart.restart()
    return found


@pytest.mark.parametrize("scatter", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["laplace", "heavy", 0.5, 0.9])
def test_what_scatters_is_not_taken_for_a_change(kind, scatter):
    assert MANY < BETWEEN and not alarms(series(np.random.default_rng(1), MANY, scatter, kind))


@pytest.mark.parametrize("factor, scatter, most", [
    (1.3, 0.05, 7), (2, 0.05, 3.2), (4, 0.05, 3.1), (2, 0.1, 4), (4, 0.1, 3.2), (2, 0.2, 8), (4, 0.3, 8), (0.5, 0.1, 4), (0.25, 0.1, 3.2),
])  # fmt: skip
def test_a_change_is_told_soon(factor, scatter, most):
    delays = []
    for seed in range(20):
        values = series(np.random.default_rng(seed), 200, scatter, "laplace")
        values[100:] += math.log(factor)
        found = alarms(values)
        assert found and found[0] >= 100, (seed, found)
        delays.append(found[0] - 99)
    assert np.mean(delays) <= most and min(delays) >= AGREE, delays


def test_what_happens_once_or_twice_is_no_change():
    values = np.zeros(100)
    values[[20, 21, 40, 60, 61, 80]] = 4.0
    assert not alarms(values)


def test_values_that_may_be_wrong_say_little():
    values = np.zeros(60)
    values[30:] = math.log(2)
    assert alarms(values, grain=0.01) and not alarms(values, grain=5.0)


def test_a_slow_drift_is_told_in_the_end():
    values = series(np.random.default_rng(3), 600, 0.05, "laplace") + np.linspace(0, 0.8, 600)
    assert alarms(values)


def test_a_level_of_other_circumstances_is_learned_and_not_mixed():
    level = Level()
    for _ in range(50):
        level.learn("long", 0.3, 1.0)
    assert level.at("long") == pytest.approx(0.3, abs=0.03) and level.at("short") == level.at("long")
    for _ in range(50):
        level.learn("short", 0.0, 1.0)
    assert level.at("short") == pytest.approx(0.0, abs=0.05) and level.at("long") == pytest.approx(0.3, abs=0.03)


def test_the_new_level_is_that_since_the_change():
    recent = Recent()
    for value in [0.0] * 20 + [1.1, 1.0, 5.0]:
        recent.add(value)
    assert recent.level(3) == pytest.approx(1.1) and recent.level(0) is None
