"""Pictures of made-up records. That they are readable was seen by eye (the pictures are kept where HEPTI_PICTURES says); here it
is tested that all text is inside the picture and that no two texts overlap."""

import doctest
import importlib
import json
import os
import random
import sys
from itertools import combinations
from pathlib import Path

import pytest
from made_benches import BOARDS, NAMES, bench, write

from hepti_mpi.errors import InputError
from hepti_mpi.reporting.benches import read_benches


@pytest.fixture(scope="module", autouse=True)
def _drawing():
    """Import what draws where a picture is drawn: it takes a second, and each process of a run imports the modules of all tests."""
    global Text, above_plot, canvas, plots
    Text = pytest.importorskip("matplotlib.text").Text
    from hepti_mpi.reporting import above_plot, canvas, plots


@pytest.fixture
def pictures(tmp_path):
    """Where pictures go: to be looked at, or nowhere."""
    return Path(os.environ.get("HEPTI_PICTURES", tmp_path / "pictures"))


@pytest.fixture(autouse=True)
def readable(monkeypatch):
    """Check every figure that is drawn: texts inside the page and apart from each other."""
    drawn: dict[int, tuple] = {}  # what the last drawing showed: a text, by what it was drawn
    save, draw_figure, draw_text = canvas.Canvas.print_png, plots.Figure.draw, Text.draw

    def anew(figure, renderer):
        drawn.clear()
        draw_figure(figure, renderer)

    def noted(text, renderer, *args):
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = (text, renderer)
        draw_text(text, renderer, *args)

    def checked(drawing, *args, **options):
        save(drawing, *args, **options)
        page = drawing.figure.bbox
        assert drawn
        boxes = [(text, Text.get_window_extent(text, renderer)) for text, renderer in drawn.values()]  # not while it is only laid out
        for text, box in boxes:
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, f"{text} is cut off"
        for (text, box), (other, second) in combinations(boxes, 2):
            width, height = min(box.x1, second.x1) - max(box.x0, second.x0), min(box.y1, second.y1) - max(box.y0, second.y0)
            assert width <= 1 or height <= 1, f"{text} overlaps {other}"

    monkeypatch.setattr(plots.Figure, "draw", anew)
    monkeypatch.setattr(Text, "draw", noted)
    monkeypatch.setattr(canvas.Canvas, "print_png", checked)


def test_examples_in_docstrings():
    assert doctest.testmod(plots).failed == 0


def test_a_report_of_several_benches(tmp_path, pictures):
    """Three clusters in one file, and one of them twice."""
    names = ("hepti", "single", "megatron")
    lines = [line for cluster in BOARDS for line in bench(cluster, names, layers=6)]
    records = write(tmp_path / "records.jsonl", lines + bench("wifi2", names[:1], layers=2, requests=1, seed=3))
    written = plots.write_report(records, pictures)
    assert all(path.stat().st_size > 1000 for path in written)
    assert len(set(written)) == len(written) == 3 * (2 + 2 * 3) + (2 + 2) + 1
    found = {path.name for path in written}
    assert {"predicted.png", "mixed4-bert-large-128-latency.png", "mixed4-bert-large-128-timeline-megatron.png"} <= found
    assert {"wifi2-bert-large-128-trace-single.json", "wifi2-bert-large-128-latency-2.png"} <= found
    if "HEPTI_PICTURES" not in os.environ:
        assert sorted(pictures.iterdir()) == sorted(written), "nothing else is left behind"
    assert written[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cluster, count", [("wifi2", 1), ("mixed4", 14), (list(BOARDS)[2], 3)])
def test_methods_of_one_bench(tmp_path, pictures, cluster, count):
    names = NAMES[-count:]
    drawn = {names[0], names[-1], "single"} & {*names}  # the timelines of the others would differ by their names alone
    lines = [line for line in bench(cluster, names) if line.get("kind") != "timeline" or line["method"] in drawn]
    written = plots.write_report(write(tmp_path / "records.jsonl", lines), pictures / f"{count}-methods")
    assert len(written) == 3 + 2 * len(drawn)
    assert all("/" not in path.name and "$" not in path.name and " " not in path.name for path in written)


def test_many_real_boards(tmp_path, pictures, monkeypatch):
    """None is emulated; and one rank alone does everything at once, in which there is nothing to zoom into."""
    monkeypatch.setitem(BOARDS, "rack", [(f"10.0.0.{rank}", None) for rank in range(64)])
    lines = bench("rack", ("hepti", "single"), layers=6)
    lines[-2]["ranks"] = [lane | {"events": [["all", "compute", 0.01, 1.7]] if lane["rank"] == 0 else []} for lane in lines[-2]["ranks"]]
    records = write(tmp_path / "records.jsonl", lines)
    assert [method.middle is None for method in read_benches(records)[0].methods.values()] == [False, True]
    assert len(plots.write_report(records, pictures / "rack")) == 7


def test_many_clusters(tmp_path, pictures, monkeypatch):
    """As many points as the whole table of predictions has."""
    names = [f"cluster{place}" for place in range(7)]
    lines = []
    for place, name in enumerate(names):
        monkeypatch.setitem(BOARDS, name, BOARDS["mixed4"])
        last = bench(name, NAMES[:12], layers=3, seed=place)[-1]
        for method in last["methods"].values():
            method["median_seconds"] *= 1.5**place
            method["predicted_seconds"] = method["predicted_seconds"] and method["predicted_seconds"] * 1.5**place
        lines.append(last)
    pictures.mkdir(exist_ok=True, parents=True)
    picture = pictures / "many-predicted.png"  # by itself: the pictures of each cluster are those of other tests
    plots.save(plots._predicted, picture, read_benches(write(tmp_path / "records.jsonl", lines)))
    assert picture.stat().st_size > 1000


def test_what_was_late_is_hollow_and_decides_no_error(tmp_path):
    lines = bench("mixed4", NAMES[:3])
    for place, method in enumerate(lines[-1]["methods"].values()):
        method["predicted_seconds"] = method["median_seconds"] * (1.5 if place == 1 else 1.02)
        method["late"] = 0.2 if place == 1 else 0.001
    figure = plots._predicted(read_benches(write(tmp_path / "records.jsonl", lines)))
    told = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "median error 2.0 %, worst +2.0 %" in told and "3 plans" in told and "Hollow: 1 plan of which" in told
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    assert [line.get_markerfacecolor() == "none" for line in points] == [False, True, False]


def test_the_last_line_alone_is_enough_for_latencies(tmp_path, pictures):
    last = bench("mixed4")[-1]
    del last["perfect_seconds"], last["bound_seconds"], last["bound_float16_seconds"]
    written = plots.write_report(write(tmp_path / "records.jsonl", [last]), pictures / "bare")
    one = "mixed4-bert-large-128"
    assert [path.name for path in written] == [f"{one}-latency.png", f"{one}-above-the-bound.png", "predicted.png"]


def test_what_stands_left_of_a_lane_is_said(tmp_path, pictures, monkeypatch):
    captions = []
    monkeypatch.setattr(plots, "page", lambda *given: captions.append(given[3]) or canvas.page(*given))
    lines = bench("mixed4", ("hepti", "single"))
    plots.write_report(write(tmp_path / "records.jsonl", lines), pictures / "lanes")
    assert captions[1].startswith("Boards are emulated") and "On the left: rank, host and board." in captions[1]


def test_without_predictions_there_is_no_picture_of_them(tmp_path):
    written = plots.write_report(write(tmp_path / "records.jsonl", bench("mixed4", ("ram",))), tmp_path / "out")
    assert [path.name.split("-", 4)[-1] for path in written] == ["latency.png", "above-the-bound.png", "timeline-ram.png", "trace-ram.json"]


def test_what_is_possible_is_read(tmp_path):
    (found,) = read_benches(write(tmp_path / "a", bench("mixed4", ("hepti",))))
    assert (found.ideal_seconds, found.bound_seconds, found.bounds) == (0.7, 0.8, {"float32": 0.8, "float16": 0.75})


def test_parts_are_means_over_the_ranks_that_work(tmp_path):
    lines = bench("mixed4", ("hepti",), requests=1)
    lines[0]["plan"] |= {"rows": [0, 8, 0, 0], "heads": [0, 4, 2, 0]}
    lines[1] |= {"compute_seconds": [9, 1, 2, 9], "wire_seconds": [9, 3, 4, 9], "wait_seconds": [9, 5, 7, 9]}
    (found,) = read_benches(write(tmp_path / "records.jsonl", lines))
    assert found.methods["hepti"].parts.tolist() == [[1.5, 3.5, 6]]


def test_a_trace_opens_elsewhere(tmp_path):
    """What the trace format asks for: complete events in microseconds, and a name for every thread."""
    lines = bench("mixed4", ("hepti",))
    plots.write_report(write(tmp_path / "records.jsonl", lines), tmp_path / "out")
    events = json.loads((tmp_path / "out" / "mixed4-bert-large-128-trace-hepti.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert threads[1] == "rank 0 on pi5-1, board 2.5" and {event["tid"] for event in spans} == set(threads) == {1, 2, 3, 4}
    body, kind, begin, end = lines[-2]["ranks"][1]["events"][5]
    found = [event for event in spans if event["tid"] == 2][5]
    assert (found["name"], found["cat"], found["ts"]) == (body, kind, pytest.approx(begin * 1e6, abs=1e-3))
    assert found["dur"] == pytest.approx((end - begin) * 1e6, abs=1e-2)


@pytest.mark.parametrize("most", [1, 8, 24, 1024])
def test_scale(pictures, most):
    pictures.mkdir(exist_ok=True, parents=True)
    sizes = sorted({min(most, size) for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)})
    chosen = [min(size, 40) for size in sizes]
    seconds = [4.2 / used**0.7 + 0.1 for used in chosen]
    plots.plot_scale(sizes, seconds, chosen, pictures / f"scale-{most}.png", "The best plan of bert-large on the first boards")


@pytest.mark.parametrize("changes", [
    [], [(0, "start"), (199, "rank 3 is back")], [(n, f"pi4-{n} is {n} x slower") for n in (40, 60, 62, 100, 170, 190)],
])  # fmt: skip
@pytest.mark.parametrize("methods", [1, 14])
def test_requests(pictures, changes, methods):
    pictures.mkdir(exist_ok=True, parents=True)
    dice = random.Random(2)
    series = {name: [0.5 + 0.05 * n + dice.uniform(0, 0.03) + 0.2 * (100 <= r < 110) for r in range(200)] for n, name in enumerate(NAMES)}
    series = {name: series[name] for name in NAMES[:methods]}
    plots.plot_requests(series, changes, pictures / f"requests-{methods}-{len(changes)}.png", "Latency while boards become slower")


def changed(number, **what):
    def mend(lines):
        lines[number] |= what

    return mend


def without(number, name):
    def mend(lines):
        del lines[number][name]

    return mend


GOOD = bench("wifi2", ("hepti",), layers=1, requests=2)  # method, request, request, timeline, the last line
EVENT = ["mlp", "compute", 0.5, 0.25]


@pytest.mark.parametrize("mend, number, said", [
    (without(0, "plan"), 1, "has no 'plan'"),
    (without(0, "strategy"), 1, "has no 'strategy'"),
    (changed(0, plan={"hosts": ["a", "b"]}), 1, "'plan', has no 'heads'"),
    (changed(0, plan=3), 1, "has 3 for 'plan', which should be an object"),
    (changed(1, method="voltage"), 2, 'about method "voltage", which is not among those'),
    (without(1, "wire_seconds"), 2, "has no 'wire_seconds'"),
    (changed(2, wait_seconds=[1]), 3, "has 1 value for 'wait_seconds' and its plan has 2 ranks"),
    (changed(2, wait_seconds=[1, "x"]), 3, "has \"x\" for 'wait_seconds[1]', which should be a number"),
    (changed(2, kind="reply"), 3, 'is of kind "reply", which is none of method, request, timeline and hepti-bench'),
    (changed(2, kind=["method"]), 3, 'is of kind ["method"], which is none of'),
    (without(2, "kind"), 3, "is of kind null, which is none of method, request, timeline and hepti-bench; make records with: mpirun"),
    (changed(2, kind="method", plan={}, strategy="", layout=""), 3, 'describes "hepti" once more'),
    (changed(0, kind="request"), 1, 'is about "hepti", which no line of kind method describes'),
    (changed(3, ranks=7), 4, "has 7 for 'ranks', which should be a list of objects"),
    (changed(3, ranks=[{"rank": 0, "host": "a", "events": [EVENT]}]), 4, "'ranks[0]', event 0 ends at 0.25 before it begins at 0.5"),
    (changed(3, ranks=[{"rank": 0, "host": "a", "events": [[1, 2]]}]), 4, "'ranks[0]', event 0 is [1, 2], which should be [body,"),
    (changed(3, ranks=[{"rank": 0, "events": []}]), 4, "'ranks[0]', has no 'host'"),
    (changed(4, format_version=2), 5, "has format version 2, this program reads 1"),
    (changed(4, rows=True), 5, "has true for 'rows', which should be a number"),
    (changed(4, rows=10**400), 5, "which should be a"),
    (changed(4, rows=float("nan")), 5, "has NaN for 'rows', which should be a number of at least 0"),
    (without(4, "cluster"), 5, "has no 'cluster'"),
    (changed(4, methods={"hepti": {}}), 5, "'methods', 'hepti', has no 'median_seconds'"),
    (changed(4, methods={"hepti": {"median_seconds": 0}}), 5, "has a median of 0 seconds"),
    (lambda lines: lines.pop(), 4, "is the last, and no line of format hepti-bench follows it: that bench was cut short"),
])  # fmt: skip
def test_a_bad_record_is_one_sentence_that_names_the_line(tmp_path, mend, number, said):
    lines = json.loads(json.dumps(GOOD))
    mend(lines)
    path = write(tmp_path / "records.jsonl", lines)
    with pytest.raises(InputError) as caught:
        plots.write_report(path, tmp_path / "out")
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} line {number}") and said in sentence and "\n" not in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, said", [
    (b"", "records.jsonl is empty; make records with: "),
    (b"\n \n", "records.jsonl is empty; make records with: "),
    (b'\n{"kind": "method", "me', "records.jsonl line 2 is cut off or not JSON; make records with: "),
    (b"latency 3 ms\n", "records.jsonl line 1 is not JSON"),
    (b"\xff\xfe{}\n", "records.jsonl line 1 is not JSON"),
    (b"[" * 100_000, "records.jsonl line 1 is not JSON"),
    (b"[1, 2]\n", "records.jsonl line 1 is JSON but no object"),
    (json.dumps(GOOD[-1] | {"methods": {}}).encode(), "records.jsonl line 1 has no methods"),
])  # fmt: skip
def test_a_file_that_holds_no_records(tmp_path, content, said):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        plots.write_report(path, tmp_path / "out")
    assert said in str(caught.value)


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in (plots, canvas, above_plot):
        monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(InputError, match="which is not installed; install it with: python -m pip install matplotlib"):
        importlib.import_module(plots.__name__)


def test_marks_and_labels_keep_apart():
    """Labels that would meet are on different lines, and the mark below a label passes no other label."""
    assert plots._levels([]) == []
    assert plots._levels([(0, 1), (2, 1), (4, 1)]) == [0, 0, 0]
    assert plots._levels([(0, 3), (2, 1), (4, 1)]) == [1, 0, 0]
    assert plots._levels([(0, 9), (2, 3), (4, 1)]) == [2, 1, 0]
    assert plots._levels([(0, 1), (0, 1)]) == [1, 0]


def test_paths_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="nowhere cannot be read: No such file"):
        plots.write_report(tmp_path / "nowhere", tmp_path)
    records = write(tmp_path / "records.jsonl", GOOD)
    with pytest.raises(InputError, match="records.jsonl cannot be made: File exists"):
        plots.write_report(records, records)
    (tmp_path / "out" / "wifi2-bert-large-128-latency.png").mkdir(parents=True)
    with pytest.raises(InputError, match="latency.png cannot be written: Is a directory"):
        plots.write_report(records, tmp_path / "out")
    with pytest.raises(InputError, match="a.png cannot be written: No such file"):
        plots.plot_scale([1, 2], [2, 1], [1, 2], tmp_path / "nowhere" / "a.png", "")
