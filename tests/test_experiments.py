"""What experiments of the lab say, of runs that are made up."""

import json
from argparse import Namespace

import pytest
from lab import experiments

pytest.importorskip("tomllib", reason="the lab needs Python 3.11 or newer")


@pytest.mark.parametrize("late, told", [(0.002, False), (0.06, True)])
def test_a_quiet_run_says_how_late_its_messages_were(late, told, tmp_path, monkeypatch, capsys):
    record = {"decisions": [], "ranks": [{"late": late / 2}, {"late": late}]}
    monkeypatch.setattr(experiments, "_drifting", lambda *_: experiments.Course([0.5, 0.25, 0.25], record, 0.504))
    assert experiments.quiet(Namespace(weights=tmp_path / "m.h5", requests=None, slow=2.0), tmp_path) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out.splitlines()[-1])
    assert (document["slow"], document["late"]) == (2.0, late) and document["cost"] == pytest.approx(0.008)
    assert f"0 switches; {late:.1%} late" in shown.out + shown.err and ("does not count" in shown.out + shown.err) == told
