"""The page of made-up records: whole, by itself, with everything on it. That it is readable was seen in a browser, as wide as a phone and
as a desk's screen."""

from html.parser import HTMLParser

from made_benches import NAMES, bench, write

from hepti_mpi.reporting.benches import read_benches
from hepti_mpi.reporting.page import page, result, ticks
from hepti_mpi.reporting.tables import milliseconds

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Reader(HTMLParser):
    """Notes tags that do not match, text, and what points elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.elsewhere, self.counts = [], [], [], {}

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.elsewhere += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "onload")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open and not reader.elsewhere and "script" not in reader.counts and "@import" not in text and "url(" not in text
    return reader, " ".join(reader.text)


def test_everything_is_on_it(tmp_path):
    benches = read_benches(write(tmp_path / "records.jsonl", bench("mixed4") + bench("wifi2", ("hepti", "single"))))
    reader, text = read(page("records <b>", benches))
    assert all(name in text for name in NAMES) and "records <b>" in text
    assert all(f"rank {rank} on {host}" in text for rank, host in enumerate(("pi5-1", "pi4-1", "pi4-2", "nuc")))
    methods = [method for one in benches for method in one.methods.values()]
    assert reader.counts["details"] == len(methods) and reader.counts["circle"] == sum(bool(method.predicted) for method in methods)
    assert "Predicted against measured" in text


def test_numbers_are_those_of_the_records(tmp_path):
    one = read_benches(write(tmp_path / "records.jsonl", bench("mixed4", ("hepti", "single"))))[0]
    _, text = read(page("x", [one]))
    for method in one.methods.values():
        assert f"{method.median * 1e3:.1f}" in text and f"The last of the requests, which took {milliseconds(method.seconds)} ms" in text
        for rank in method.ranks:
            assert rank.measured is None or f"{rank.measured[0] * 1e3:.1f} / " in text


def test_names_cannot_break_out(tmp_path):
    lines = [line | {"cluster": "<script>alert(1)</script>"} if line.get("format") else line for line in bench("wifi2", ("hepti",))]
    read(page("x", read_benches(write(tmp_path / "records.jsonl", lines))))


def test_the_last_line_alone_is_enough(tmp_path):
    last = bench("mixed4")[-1]
    _, text = read(page("x", read_benches(write(tmp_path / "records.jsonl", [last]))))
    assert "hepti" in text and "rank 0 on" not in text


def test_it_says_what_came_out_of_what_and_when(tmp_path):
    lines = bench("mixed4", ("sequence", "hepti", "megatron", "galaxy-boost", "single"))
    lines[-1] |= {"date": "2026-11-26 15:40 UTC", "machine": "vm, a processor, 2 cores", "ranks": 4, "versions": {"onnxruntime": "1.32.0"}}
    (one,) = read_benches(write(tmp_path / "records.jsonl", lines))
    text = page("records.jsonl", [one])
    reader, words = read(text)
    assert "bert-large on mixed4: ways to divide it compared" in words and "records.jsonl" in words
    assert one.made == "2026-11-26 15:40 UTC; vm, a processor, 2 cores; 4 ranks; onnxruntime 1.32.0" and one.made in words
    single, hepti, megatron = (one.methods[name].median for name in ("single", "hepti", "megatron"))
    assert result(one) == (
        f"hepti answers a request of 128 rows in {hepti * 1e3:.1f} ms; single (the board that is soonest alone) takes "
        f"{single / hepti:.2f} x as long; megatron (heads and columns evenly, as Megatron-LM) takes {megatron / hepti:.2f} x as long."
    )
    assert result(one) in words and "heads and columns by speed, as Galaxy, with our exchanges" in words
    assert text.count("<details open>") == 1 and "<details open><summary>hepti (" in text  # though sequence is the soonest
    assert text.count('<span class="name ours"') == 1 and text.count('<tr class="best"><td>hepti<') == 2  # latencies, above the bound
    assert text.count("<u style=") == len(one.methods)


def test_what_none_can_beat_is_said_for_each_wire_and_what_does_not_count_too(tmp_path):
    lines = bench("mixed4", ("hepti", "hepti-float16", "voltage"))
    (one,) = read_benches(write(tmp_path / "records.jsonl", lines))
    text = read(page("x", [one]))[1]
    assert "800.0 ms with float32 on the wire, 750.0 ms with float16 on the wire" in text
    bound = one.methods["hepti-float16"].median - sum(one.methods["hepti-float16"].above.values())
    assert f"{bound * 1e3:.1f}" in text.partition("Above the bound")[2], "each method's own"
    assert text.count("does not count") == 1
    assert "voltage does not count: 2.0 % of its time messages left later than from its boards." in text


def test_what_it_was_made_on_is_told_whole(tmp_path):
    lines = bench("wifi2", ("hepti",))
    lines[-1] |= {"machine": "küche, Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 2 cores", "versions": {"mpi": "x" * 1000}}
    (one,) = read_benches(write(tmp_path / "records.jsonl", lines))
    assert one.made.startswith("küche, Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 2 cores; mpi xxx") and len(one.made) < 200


def test_ratios_name_what_they_are_to(tmp_path):
    both = bench("mixed4", ("hepti", "single")) + bench("wifi2", ("megatron", "single"))
    first, second = (page("x", [one]) for one in read_benches(write(tmp_path / "records.jsonl", both)))
    assert "<th>to hepti</th>" in first and "<th>to megatron</th>" in second


def test_one_request_has_no_spread(tmp_path):
    lines = bench("mixed4", ("hepti", "voltage"), requests=1)
    lines[-1]["methods"]["hepti"]["late"] = 0.02
    text = page("x", read_benches(write(tmp_path / "records.jsonl", lines)))
    assert "<u style=" not in text and "Of each method there is one request." in text
    assert "ms, which does not count; " in text


def test_marks_are_round():
    assert ticks(0.93, 5) == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert ticks(1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(0.0123) == [0.0, 0.0025, 0.005, 0.0075, 0.01]
