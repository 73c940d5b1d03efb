"""The page of a service in a real browser: somebody talks, stops an answer, and sees a board go; on a phone and a desk, light and dark."""

import os
from pathlib import Path

import browser
import pytest
import test_streams

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no chromium here; apt-get install chromium")
PICTURES = os.environ.get("HEPTI_PICTURES")  # a folder to keep pictures in
PLAN = {"hash": "5ad1c0de", "strategy": "tensor", "hosts": ["pi4-1", "pi4-2", "pi5"], "columns": [500, 500, 1072]}
BOARDS = {"status": "ready", "doing": None, "starts": 1, "hosts": [{"host": name, "state": "here"} for name in PLAN["hosts"]]}
DETAILS = {"plan": PLAN, "why": ["of 7 plans this one is the fastest", "the link of pi4-2 is the slowest"],
           "computed": {"0": 0.011, "2": 0.0123}, "events": [{"time": 1795750000.0, "what": "ready on pi4-1, pi4-2, pi5"}]}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    with browser.Browser() as own:
        yield own


@pytest.fixture
def service(page):
    """A service of a stand-in that counts, slowly, and what it says of itself, to be changed."""
    status, details = dict(BOARDS), dict(DETAILS)
    with test_streams.counting(status, details, slow=0.1) as port:
        yield f"http://127.0.0.1:{port}/", status, details
        page.show("about:blank")  # else it would go on to look
        page.problems.clear()


def kept(page, name):
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


def test_somebody_talks_stops_and_sees_a_board_go(page, service):
    url, status, details = service
    page.show(url)
    page.until("document.getElementById('what').textContent == 'Message'")
    page.click("#text")
    page.write("five")
    page.click("#send")
    page.until("document.querySelector('.assistant')?.textContent == 'six seven eight nine'")
    page.until("!document.getElementById('send').disabled")
    assert page.text(".user") == "five" and page.value("document.getElementById('text').value") == ""
    page.click("#text")
    page.write("zero")
    page.click("#send")
    page.until("document.querySelectorAll('.assistant')[1]?.textContent.startsWith('one')")
    page.click("#stop")
    page.until("document.getElementById('answer').textContent == 'stopped'")
    said = page.value("document.querySelectorAll('.assistant')[1].textContent")
    assert said and "nine" not in said and page.value("document.activeElement.id") == "text"
    assert "pi4-2" in page.text("#ranks") and page.value("document.querySelectorAll('#ranks .bar').length") == 3
    kept(page, "desk-light")
    status.update(status="degraded", hosts=[host | {"state": "lost" if host["host"] == "pi4-2" else "here"} for host in BOARDS["hosts"]])
    details.update(plan=PLAN | {"hosts": ["pi4-1", "pi5"], "columns": [700, 1372]}, computed={"0": 0.015, "1": 0.016},
                   events=[*DETAILS["events"], {"time": 1795750100.0, "what": "pi4-2 does not answer; starting again"}])  # fmt: skip
    page.until("document.getElementById('state').textContent == 'degraded: pi4-2 lost'")
    assert page.value("[...document.querySelectorAll('#ranks tr')].map(row => row.innerText.includes('lost'))") == [False, False, True]
    assert page.text("#events").splitlines()[0].endswith("pi4-2 does not answer; starting again")
    kept(page, "desk-light-lost")
    assert page.text("#unit") == "ms a batch"
    details.update(computed={})  # of texts nobody tells it
    page.until("document.getElementById('unit').textContent == ''")
    assert page.problems == []


def test_a_talk_goes_on_after_one_that_is_too_long_and_begins_anew(page, service):
    url, *_ = service
    page.show(url)
    page.until("document.getElementById('what').textContent == 'Message'")
    assert page.value("document.getElementById('new').hidden")
    for text, said in (("five", "six seven eight nine"), ("one " * 80, None), ("seven", "eight nine")):
        page.value("document.getElementById('text').value = ''")
        page.click("#text")
        page.write(text)
        page.click("#send")
        page.until("!document.getElementById('send').disabled")
        if said is None:
            page.until("document.getElementById('answer').textContent.includes('there is room for 64')")
            assert page.value("document.getElementById('text').value") == text
            assert page.value("document.querySelectorAll('.user').length") == 1
        else:
            page.until(f"[...document.querySelectorAll('.assistant')].pop()?.textContent == '{said}'")
    page.problems.clear()  # a browser logs each refusal
    page.until("!document.getElementById('send').disabled")
    kept(page, "desk-light-talk")
    page.click("#new")
    assert page.value("document.querySelectorAll('.said').length") == 0 and page.value("document.getElementById('new').hidden")
    page.click("#text")
    page.write("eight")
    page.click("#send")
    page.until("document.querySelector('.assistant')?.textContent == 'nine'")
    assert page.problems == []


@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (1280, True)])
def test_it_fits_a_phone_and_a_desk(page, service, width, dark):
    url, *_ = service
    page.show(url, width, 844 if width < 600 else 800, dark)
    page.until("document.getElementById('what').textContent == 'Message'")
    page.click("#text")
    page.write("three and a word that is much longer than others: " + "wide" * 40)
    page.click("#send")
    page.until("document.querySelectorAll('#ranks tr').length == 3 && !document.getElementById('send').disabled")
    kept(page, f"{'phone' if width < 600 else 'desk'}-{'dark' if dark else 'light'}")
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    small = "[...document.querySelectorAll('button, textarea, input')].filter(one => one.offsetParent && one.offsetHeight < 44)"
    assert page.value(f"{small}.length") == 0  # a finger has to hit them
    unnamed = "[...document.querySelectorAll('textarea, input')].filter(one => !one.labels?.length && !one.ariaLabel)"
    assert page.value(f"{unnamed}.length") == 0
    assert page.problems == []


def test_what_boards_of_teams_do_is_told(page, service):
    url, _, details = service
    hosts = [*PLAN["hosts"], "pi3"]
    stages = [[{"members": [0]}], [{"members": [0]}], [{"members": [1]}, {"members": [2]}]]
    teams = [{"ranks": [0], "rows_per_second": 700.0, "inputs": 1}, {"ranks": [0], "rows_per_second": 800.0, "inputs": 0},
             {"ranks": [1, 2], "rows_per_second": 1500.0, "inputs": 0}]  # fmt: skip
    details.update(plan={"hash": "5ad1c0de", "strategy": "teams", "hosts": hosts, "teams": stages}, computed={}, teams=teams)
    page.show(url, 390, 844, dark=True)
    page.until("document.querySelectorAll('#ranks tr').length == 4")
    told = page.value("[...document.querySelectorAll('#ranks tr')].map(row => row.innerText)")
    assert [row.replace("\n", "").replace("\t", "|") for row in told] == [
        "0|pi4-1||1,500|1 input", "1|pi4-2||1,500|rests", "2|pi5|stage 2 of 2||rests", "3|pi3|left out||",
    ]
    assert page.value("[...document.querySelectorAll('#ranks .bar')].map(bar => bar.ariaLabel)") == ["50 %", "50 %"]
    assert page.text("#unit") == "tokens/s when busy" and page.value("document.documentElement.scrollWidth <= innerWidth")
    kept(page, "phone-teams")
    assert page.problems == []


def test_a_key_is_asked_for_and_used(page):
    with test_streams.counting(dict(BOARDS), dict(DETAILS), keys=["secret-key"]) as port:
        page.show(f"http://127.0.0.1:{port}/")
        page.until("!document.getElementById('keys').hidden")
        page.click("#key")
        page.write("secret-key")
        page.click("#keys button")
        page.until("document.getElementById('keys').hidden && document.getElementById('what').textContent == 'Message'")
        page.value("sessionStorage.clear()")
        page.show("about:blank")
    page.problems.clear()  # a browser logs each 401
