"""Keeping a run going: hostfiles, what is swept, when it is given up; on this machine, with a program of its own in the place of mpirun."""

import doctest
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from click.testing import CliRunner
from clusters import cluster

from hepti_mpi.cluster import profile as profiles
from hepti_mpi.cluster.hosts import Host
from hepti_mpi.comm import channel, folders
from hepti_mpi.comm.channel import MARK, STATE, tell, told, untangled
from hepti_mpi.comm.launcher import host_name, mpirun_words
from hepti_mpi.commands import main
from hepti_mpi.commands.meter import Meter
from hepti_mpi.commands.supervise import finish
from hepti_mpi.errors import HeptiError, InputError, PartlyAnswered
from hepti_mpi.serving.outputs import finished_answer
from hepti_mpi.supervisor import supervise
from hepti_mpi.supervisor.blame import Troubles
from hepti_mpi.supervisor.kept import Kept
from hepti_mpi.supervisor.progress import State, read_state
from hepti_mpi.supervisor.supervise import GivenUp, Supervisor
from hepti_mpi.supervisor.sweep import SWEEP


def test_records_among_lines(capsys):
    tell("answers", places=[1], finished=[{"answer": {}}], seconds=0.5)
    line = capsys.readouterr().out
    assert told(line) == {"kind": "answers", "places": [1], "finished": [{"answer": {}}], "seconds": 0.5}
    assert [told(other) for other in (line[1:], line[:-2], "plan\n", MARK + "7\n", MARK + "{}\n", "")] == [None] * 6


def test_a_record_in_the_midst_of_a_line_of_another_rank():
    late, long, cut = (MARK + text for text in ('{"kind": "late"}\n', '{"kind": "answers", "places": [1, 2]}\n', '{"kind": "ans'))
    assert list(untangled(["plan\n", long, late])) == ["plan\n", long, late]
    assert list(untangled([long[:20] + late, long[20:]])) == [late, long]
    assert list(untangled([long[:20] + late, late, long[20:25] + late, long[25:]])) == [late, late, late, long]
    assert list(untangled([cut + late, late])) == [late, late, cut]  # whoever wrote the other is no more


def test_a_rank_says_on_which_host_of_the_supervisor_it_is(tmp_path, monkeypatch, capsys):
    path = tmp_path / "state"
    monkeypatch.delenv(STATE, raising=False)
    channel.tell_place()
    channel.tell_trouble("error", "nobody listens")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(STATE, str(path))
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    for content, host in (('{"host": "10.0.0.7"}', "10.0.0.7"), ("{", None), ("[]", None), ("{}", None)):
        path.write_text(content)
        channel.tell_place()
        assert told(capsys.readouterr().out) == {"kind": "rank", "rank": 3, "host": host}


def test_what_is_known_comes_back(tmp_path):
    path = tmp_path / "state.json"
    assert read_state(path) == State()
    for state in (State([3, 1], []), State([], [cluster((3.0, 1.0))])):
        path.write_text(json.dumps(state.to_json()))
        assert read_state(path) == state
    path.write_text(json.dumps(State([1]).to_json()).replace("[1]", '["x"]'))
    with pytest.raises(InputError, match="is damaged"):
        read_state(path)


def sweep(path, content, *marks):
    return subprocess.run([sys.executable, "-c", SWEEP, str(path), *marks], input=content, capture_output=True, timeout=120)


def test_a_sweep_ends_the_job_and_nothing_else(tmp_path):
    path, quiet = tmp_path / "state", {"stdout": subprocess.DEVNULL}
    mine, other = (subprocess.Popen(["sleep", "60"], env={**os.environ, "HEPTI_JOB": name}, **quiet) for name in ("mine", "other"))
    stopped = subprocess.Popen(["sleep", "60"], env={**os.environ, "HEPTI_JOB": "mine"}, **quiet)
    try:
        stopped.send_signal(19)  # SIGSTOP
        time.sleep(0.2)
        done = sweep(path, b"what is known", "HEPTI_JOB=mine")
        assert done.returncode == 0, done.stderr
        assert mine.wait(120) == stopped.wait(120) == -9 and other.poll() is None
        assert path.read_bytes() == b"what is known" and path.stat().st_mode & 0o777 == 0o600
        assert sweep(path, b"", "HEPTI_JOB=mine").returncode == 0 and not path.exists()
        assert sweep(path, b"", "HEPTI_JOB=mine").returncode == 0
    finally:
        for process in (mine, other, stopped):
            process.kill()
            process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_what_supervisors_that_were_killed_have_left(tmp_path):
    """What ranks of another one name stays, what is fresh, and what is another user's."""
    kept, gone = ["hepti-7-named.json", "hepti-7-fresh.json", "hepti-77-left.json", "hepti-7-a.txt"], "hepti-7-left.json"
    for name in (*kept, gone):
        (tmp_path / name).write_text("{}")
        if name != "hepti-7-fresh.json":
            os.utime(tmp_path / name, (0, 0))
    rank = subprocess.Popen(["sleep", "60"], env={**os.environ, STATE: str(tmp_path / "hepti-7-named.json")}, stdout=subprocess.DEVNULL)
    try:
        assert sweep(tmp_path / "hepti-7-mine.json", b"what is known", "HEPTI_JOB=mine").returncode == 0
        left = {path.name for path in tmp_path.iterdir()}
    finally:
        rank.kill()
        rank.wait()
    assert left == {*kept, "hepti-7-mine.json"}


def supervised(tmp_path, script, hosts=("localhost",), gains=lambda *_: None, patient=False, said=None, does=lambda _: None):
    """Supervise a shell script in the place of mpirun; return what was heard and said, and what came of it."""
    launcher = tmp_path / "launcher.sh"
    launcher.write_text("#!/bin/sh\n" + script)
    launcher.chmod(0o755)
    heard, said = [], [] if said is None else said
    state = State()

    def hear(record):
        heard.append(record)
        state.finished += record.get("places", [])

    hosts = [host if isinstance(host, Host) else Host(host) for host in hosts]
    watch = Supervisor(hosts, [str(launcher)], ["run"], lambda: state, hear, gains, said.append, patient)
    watch.does = does
    try:
        watch.run()
        return heard, said, None
    except HeptiError as error:
        return heard, said, str(error)
    finally:
        assert not watch.folder.exists() and not watch.path.exists()


ANSWER = """printf '\\036{"kind": "answers", "places": [%d], "finished": [{}], "seconds": 1}\\n'"""
DONE = """printf '\\036{"kind": "done", "record": {}}\\n'"""


def test_a_run_that_is_done(tmp_path):
    heard, said, why = supervised(tmp_path, f"{ANSWER % 0}\n{DONE}\n")
    assert [record["kind"] for record in heard] == ["answers", "done"] and not said and why is None


def test_a_run_goes_on_where_nobody_reads_what_its_ranks_print(tmp_path, monkeypatch):
    """mpirun stood still as soon as nobody took what it said."""

    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Gone())
    heard, _, why = supervised(tmp_path, f"yes word | head -n 40000 | tee /dev/stderr\n{ANSWER % 0}\n{DONE}\n")
    assert [record["kind"] for record in heard] == ["answers", "done"] and why is None


def test_a_run_that_is_cut_off_is_started_again_and_told_what_is_there(tmp_path):
    script = f"""
count=$(cat {tmp_path}/count 2>/dev/null || echo 0)
echo $((count + 1)) > {tmp_path}/count
cp "$HEPTI_STATE" {tmp_path}/state$count
printf '\\036{{"kind": "answers", "places": [%d], "finished": [{{}}], "seconds": 1}}\\n' $count
[ $count = 3 ] || kill -9 $$
{DONE}
"""
    heard, said, why = supervised(tmp_path, script)
    assert why is None and [record.get("places") for record in heard] == [[0], [1], [2], [3], None]
    assert len(said) == 3 and all("ended with code -9 before it was done; starting again" in line for line in said)
    assert [read_state(tmp_path / f"state{number}").finished for number in range(4)] == [[], [0], [0, 1], [0, 1, 2]]


def test_it_gives_up_when_nothing_comes_of_it(tmp_path):
    _, said, why = supervised(tmp_path, f"{ERROR % (0, 'on pi1 (rank 0): what it was')}\nexit 1\n")
    assert "started 3 times in a row without one more answer on localhost" in why and "what it was" in why
    assert len(said) == 2


def test_bad_input_is_not_tried_again(tmp_path):
    _, said, why = supervised(tmp_path, f"{ERROR % (0, 'on pi1 (rank 0): no such file')}\nexit 2\n")
    assert why == "the run cannot begin: on pi1 (rank 0): no such file" and not said


ERROR = """printf '\\036{"kind": "error", "rank": %d, "said": "%s"}\\n'"""
HERE = """printf '\\036{"kind": "here", "deadline": %g}\\n'"""


def test_silence_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "SILENCE", 2)
    _, said, why = supervised(tmp_path, f"{HERE % 0.25}\nexec sleep 6000\n")
    assert "started 3 times in a row" in why and said == ["nothing was heard for 0.5 s; starting again"] * 2


def test_where_deadlines_are_off_silence_is_no_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "BEGIN_SECONDS", 8)
    heard, said, why = supervised(tmp_path, f"{HERE % 0}\nsleep 9\n{ANSWER % 0}\n{DONE}\n")
    assert [record["kind"] for record in heard] == ["here", "answers", "done"] and not said and why is None


TWO = (("localhost", "pi1"), ("127.0.0.1", "pi2"))  # both here, so both answer


RANKS = """printf '\\036{"kind": "rank", "rank": 0, "host": "localhost"}\\n\\036{"kind": "rank", "rank": 1, "host": "127.0.0.1"}\\n'"""


@pytest.mark.parametrize("by_the_end", [
    """printf '\\036{"kind": "late", "rank": 0, "said": "waited", "waited": [1], "silent": [], "alone": false}\\n'""",
    ERROR % (1, "on raspberrypi (rank 1): [Errno 5] Input/output error"),
    "echo 'prterun noticed that process rank 1 with PID 4711 on node whatever-it-is exited on\nsignal 9 (Killed).' >&2; sleep 0.2",
])  # fmt: skip
def test_a_host_that_answers_and_is_no_good_is_left_out(tmp_path, by_the_end):
    script = f"if grep -q 127.0.0.1 $2; then {RANKS}; {by_the_end}; exit 4; fi\n{ANSWER % 0}\n{DONE}\n"
    heard, said, why = supervised(tmp_path, script, hosts=[Host(name, own) for name, own in TWO])
    assert why is None and [record["kind"] for record in heard if record["kind"] in ("answers", "done")] == ["answers", "done"]
    assert len(said) == 2 and "127.0.0.1 is left out, though it answers; starting again" in said[-1], said


def test_a_store_that_has_become_bad_costs_its_host_only(tmp_path):
    script = f"""
if ! grep -q 127.0.0.1 $2; then {ANSWER % 1}; {DONE}; exit 0; fi
if [ -e {tmp_path}/again ]; then {RANKS}; {ERROR % (1, "on pi2 (rank 1): x.h5 is damaged")}; exit 2; fi
touch {tmp_path}/again
{ANSWER % 0}
kill -9 $$
"""
    heard, said, why = supervised(tmp_path, script, hosts=[Host(name, own) for name, own in TWO])
    assert why is None and [record["kind"] for record in heard if "rank" not in record] == ["answers", "answers", "done"]
    assert said[-1] == "on pi2 (rank 1): x.h5 is damaged; 127.0.0.1 is left out; starting again"


def host_behind(tmp_path, monkeypatch, answers):
    """Let pi9 be a host whose sshd says something when `answers` says so; ssh itself is a program that runs here what it runs there."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen()
    fake = f"""#!/bin/sh
[ "$1" != -G ] || exec printf 'hostname 127.0.0.1\nport {door.getsockname()[1]}\n'
for line; do :; done
sh -c "$line" >/dev/null && echo pi9.lan
"""
    (folder / "ssh").write_text(fake)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(supervise, "ASK_SECONDS", 0.5)

    def open_up():
        while door.fileno() >= 0:
            with suppress(OSError):  # who asked has gone
                link, _ = door.accept()
                with link:
                    link.sendall(b"SSH-2.0-test\n" * answers())

    threading.Thread(target=open_up, daemon=True).start()
    return door


def test_a_host_that_is_back_is_taken_back_if_it_gains_enough(tmp_path, monkeypatch):
    begun = tmp_path / "begun"
    door = host_behind(tmp_path, monkeypatch, begun.exists)
    asked = []

    def gains(more, present):
        asked.append((more, present))
        return 3600.0

    script = f"""
if grep -q pi9 $2; then {ANSWER % 1}; {DONE}; exit 0; fi
{ANSWER % 0}
touch {begun}
exec sleep 60
"""
    heard, said, why = supervised(tmp_path, script, hosts=("localhost", "pi9"), gains=gains)
    door.close()
    assert why is None and [record["kind"] for record in heard] == ["answers", "answers", "done"], (why, said)
    assert said == ["pi9 does not answer", "pi9 is left out", "pi9 is back; starting again"], said
    assert asked[0] == ([host_name(), "pi9"], [host_name()])


def test_a_service_waits_for_its_last_host(tmp_path, monkeypatch):
    again = tmp_path / "again"
    script = f"if [ -e {again} ]; then {ANSWER % 1}; {DONE}; exit 0; fi\n{ANSWER % 0}\ntouch {again}; exec sleep 60\n"
    for patient, expected in ((True, None), (False, "no host of the hostfile answers: pi9")):
        again.unlink(missing_ok=True)
        said, done = [], []
        door = host_behind(tmp_path, monkeypatch, lambda: not again.exists() or "waiting" in "".join(said))  # noqa: B023
        *_, why = supervised(tmp_path, script, hosts=("pi9",), patient=patient, said=said, does=done.append)
        door.close()
        assert why == expected and done == ["starting"] * 2 + ["waiting for hosts", "starting"] * patient
        assert said[:2] == ["pi9 does not answer; starting again", "pi9 is left out"], said
        assert not patient or said[2:] == ["no host of the hostfile answers: pi9; waiting for them"]


@pytest.mark.parametrize("patient, starts", [(True, 7), (False, 1)])
def test_bad_input_of_a_service_that_has_answered_is_no_end(tmp_path, patient, starts):
    """It is in the requests that are under way, each of which is asked a few times only."""
    script = f"""
echo >> {tmp_path}/count
[ $(wc -l < {tmp_path}/count) != 1 ] || {ANSWER % 0}
{ERROR % (0, "on pi1 (rank 0): no such thing")}
exit 2
"""
    _, said, why = supervised(tmp_path, script, patient=patient)
    assert len((tmp_path / "count").read_text()) == starts and "no such thing" in why
    assert len(said) == starts - 1


def test_starts_are_counted_anew_where_what_they_failed_for_is_given_up(tmp_path):
    script = f"""
echo >> {tmp_path}/count
[ $(wc -l < {tmp_path}/count) != 12 ] || {{ {DONE}; exit 0; }}
exit 1
"""
    said, own = [], []

    def tell(sentence):
        said.append(sentence)
        if len(said) % 4 == 0:
            own[0].excuse()

    launcher = tmp_path / "launcher.sh"
    launcher.write_text("#!/bin/sh\n" + script)
    launcher.chmod(0o755)
    watch = Supervisor([Host("localhost")], [str(launcher)], ["run"], State, lambda _: None, lambda *_: None, tell, True)
    own.append(watch)
    watch.run()
    assert len(said) == 11


def late(rank, *waited, alone=False):
    return {"kind": "late", "rank": rank, "said": "it waited", "waited": waited, "silent": [], "alone": alone}


@pytest.mark.parametrize("records, bad", [
    ([late(1, 2), late(2, 1)], 2), ([late(1, 2), late(2, 1), late(2, 1)], 1), ([late(0, 1, 2)], 2), ([late(0, 2, alone=True)], 0),
    ([{"kind": "error", "rank": 1, "said": "x"}], 1), ([late(0, 7)], None), ([late(0)], None), ([], None), ([{"kind": "done"}], None),
])  # fmt: skip
def test_whom_to_blame(records, bad):
    """Ranks are found by the hosts that they were told to be on, whatever those call themselves."""
    hosts = [Host(name, own) for name, own in (("10.0.0.11", "pi1"), ("NODE2.lan", "raspberrypi"), ("alias", "pi3"))]
    troubles = Troubles()
    for rank, host in enumerate(hosts):
        troubles.take({"kind": "rank", "rank": rank, "host": host.name})
    for record in records:
        troubles.take(record)
    assert troubles.host(hosts) is (None if bad is None else hosts[bad])
    killed = "prterun noticed that process rank 1 with PID 4711 on node anything exited on\n"
    for line in [killed] * 4:
        troubles.hear(line)
    assert troubles.host(hosts) is hosts[1] and troubles.host(hosts[:1]) in (None, hosts[0])


@pytest.mark.parametrize("spoken, bad", [((0, 2), 1), ((0, 1, 2), None), ((0,), None), ((), None)])
def test_a_rank_that_was_killed_before_its_first_word(spoken, bad):
    hosts = [Host(f"pi{number}") for number in range(3)]
    troubles = Troubles()
    for rank in spoken:
        troubles.take({"kind": "rank", "rank": rank, "host": hosts[rank].name})
    troubles.hear(f"prterun noticed that process rank {5 if bad is None else bad} with PID 4711 on node vm exited on\n")
    assert troubles.host(hosts) is (None if bad is None else hosts[bad])


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_a_rank_told_is_said_once(tmp_path, capfd, code):
    rule, ended = "-" * 76, "prterun detected that one or more processes exited with non-zero status,"
    notice = f"{rule}\n{ended}\n   Exit code: {code}\n{rule}\nother words\n"
    script = f"{ERROR % (0, 'on pi1 (rank 0): what it was')}\ncat >&2 <<'END'\n{notice}END\nexit {code}\n"
    _, said, why = supervised(tmp_path, script)
    starts = 1 if code == 2 else 3
    assert [line.count("what it was") for line in [*said, why]] == [1] * starts
    assert capfd.readouterr().err == "other words\n" * starts


def test_ranks_of_which_nobody_knows_where_they_are():
    troubles = Troubles()
    for record in ({"kind": "rank", "rank": 0, "host": None}, {"kind": "error", "rank": 0, "said": "x"}, late(3, 0)):
        troubles.take(record)
    assert troubles.host([Host("pi1")]) is None and troubles.said == "it waited"


def test_hosts_that_mpirun_cannot_tell_apart(tmp_path):
    for hosts in ([Host("localhost", "pi1"), Host("127.0.0.1", "pi1")], [Host("127.0.0.2", "a"), Host("127.0.0.3", "a")]):
        _, _, why = supervised(tmp_path, DONE, hosts=hosts)
        assert f"{hosts[0].name} and {hosts[1].name} are both {hosts[0].own} to mpirun" in why


def test_ranks_that_do_not_find_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "BEGIN_SECONDS", 0.5)
    _, said, why = supervised(tmp_path, "exec sleep 60\n")
    assert "started 3 times in a row" in why and said == ["the ranks did not find each other within 0.5 s; starting again"] * 2


def test_a_launcher_that_is_not_there(tmp_path):
    watch = Supervisor([Host("localhost")], ["/nowhere/mpirun"], ["run"], State, print, lambda *_: None, print)
    with pytest.raises(GivenUp, match="/nowhere/mpirun cannot be started"):
        watch.run()


def test_how_a_launcher_in_a_folder_with_a_blank_is_called(tmp_path):
    """That its first half could not be started was said, and to name the very file that had been named."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/mpirun").touch()
    named = f"{tmp_path}/a b/mpirun"
    assert mpirun_words(named) == [named]
    assert mpirun_words(f"'{named}' --bind-to none") == [named, "--bind-to", "none"]


def test_a_launcher_without_room_for_its_files(tmp_path, monkeypatch):
    """It was started again and again: no rank said why."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(folders, "ROOM", 1 << 60)
    heard, _, why = supervised(tmp_path, DONE)
    assert not heard and why == f"mpirun needs {1 << 40} MiB in {tmp_path}, and less is free there; make room, or set TMPDIR"


def test_hosts_that_do_not_answer(tmp_path):
    _, said, why = supervised(tmp_path, DONE, hosts=("198.51.100.1", "198.51.100.2"))  # addresses that nobody has
    assert why == "no host of the hostfile answers: 198.51.100.1, 198.51.100.2"
    heard, said, why = supervised(tmp_path, DONE, hosts=("localhost", "198.51.100.1"))
    assert why is None and said == ["198.51.100.1 does not answer", "198.51.100.1 is left out"] and heard


def test_a_host_whose_name_nobody_knows(tmp_path):
    """It was left out, and nothing said why."""
    _, said, why = supervised(tmp_path, DONE, hosts=("localhost", "pi9.invalid"))
    mend = "write its address into the hostfile, or address and name into /etc/hosts"
    assert why is None and said == [f"nobody here knows the name pi9.invalid: {mend}", "pi9.invalid is left out"]


def kept(tmp_path, output="a.jsonl", **more):
    said = []
    return Kept(tmp_path / "hosts.profile.json", tmp_path / output if output else None, more.get("resume", False), said.append), said


RATE = r": [0-9.,]+ texts a second, starting included"
BEGIN = {"kind": "begin", "requests": 3, "head": {"model": "m", "source_hash": "s", "input_hash": "i"}, "refused": []}


DONE_RECORD = {"kind": "done", "record": {"format": "hepti-run", "embedding": "tokens"}}


def answers(*places, rows=1, left=1):
    finished = [finished_answer({"input": str(place)}) for place in places]
    return {"kind": "answers", "places": list(places), "finished": finished, "seconds": 1.0, "rows": rows, "rows_left": left}


def test_what_is_told_is_kept_and_written_once_and_in_order(tmp_path, capsys):
    one, _ = kept(tmp_path)
    for record in (BEGIN, answers(2), answers(0), BEGIN, answers(2, 1), DONE_RECORD):
        one.heard(record)
    assert one.state().finished == [0, 1, 2]
    finish(one)
    assert (tmp_path / "a.jsonl").read_text() == '{"input": "0"}\n{"input": "1"}\n{"input": "2"}\n'
    *_, summary, document = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"3 texts answered in 0.\d\d s, with 2 starts{RATE}; answers in {tmp_path / 'a.jsonl'}", summary), summary
    told = json.loads(document)
    assert told.pop("supervised").items() >= {"inputs": 3, "starts": 2}.items()
    assert told == {"format": "hepti-run", "embedding": "tokens", "errors": 0, "truncated": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_end_says_what_is_kept_as_long_as_that_is_so(tmp_path):
    one, _ = kept(tmp_path)
    assert one.interrupted() == "interrupted after 0 answers; nothing is kept" and one.left() == ""
    for record in (BEGIN, answers(2), DONE_RECORD):
        one.heard(record)
    assert one.left().startswith(f"1 of 3 answers are kept in {tmp_path / 'a.jsonl.journal'}; go on with")
    with pytest.raises(InputError, match="2 of 3 answers are missing$"):
        one.write()
    one.heard(answers(0, 1))
    assert one.left().startswith("3 of 3 answers are kept in ") and one.interrupted() == f"interrupted; {one.left()}"
    there = one.journal.path.rename(tmp_path / "there")
    assert one.left() == f"3 of 3 were answered, of which nothing is kept: {one.journal.path} was deleted"
    there.rename(one.journal.path)
    one.write()
    assert one.left() == "" and one.interrupted() == f"interrupted; every answer is in {tmp_path / 'a.jsonl'}"


def test_what_was_not_answered_is_counted_in_the_summary(tmp_path, capsys):
    one, _ = kept(tmp_path)
    bad = {**BEGIN, "refused": [[1, finished_answer({"input": ""}, "is empty")]]}
    for record in (bad, answers(0, 2), DONE_RECORD):
        one.heard(record)
    with pytest.raises(PartlyAnswered, match="1 of 3 inputs could not be answered"):
        finish(one)
    *_, left, summary, _ = capsys.readouterr().out.splitlines()
    assert left.endswith("says why: 1") and summary.startswith("2 of 3 texts answered in 0.") and summary.endswith("a.jsonl")


def test_what_is_kept_is_what_the_journal_holds(tmp_path):
    """What was refused was counted as kept, and one fewer was found by whoever went on."""
    one, _ = kept(tmp_path)
    one.heard({**BEGIN, "refused": [[1, finished_answer({"input": ""}, "is empty")]]})
    assert one.left() == ""
    one.heard(answers(0))
    assert one.left().startswith("1 of 3 answers are kept in ") and one.state().finished == [0, 1]
    one.heard(answers(2))
    tally = one.write()
    assert (tally.inputs, tally.errors) == (3, 1)
    assert [json.loads(line)["input"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == ["0", "", "2"]


@pytest.mark.parametrize("output", ["a.jsonl", None])
def test_progress_counts_what_was_left_to_do(tmp_path, output):
    """Neither what was refused, nor what was kept before, nor what two starts answered twice."""
    begin = {**BEGIN, "requests": 9, "refused": [[3, finished_answer({"input": ""}, "is empty")]]}
    before = 0
    if output:
        first, _ = kept(tmp_path)
        first.heard({**begin, "refused": []})
        first.heard(answers(8))
        first.journal.file.close()
        before = 1
    one, _ = kept(tmp_path, output, resume=bool(output))
    one.meter = Meter("starting", None)
    counts = []
    for record in (begin, answers(0, 1), answers(2), begin, answers(2, 4), answers(5, 6, 7), *([] if output else [answers(8)])):
        one.heard(record)
        counts.append((one.meter.total, one.meter.done))
    left = 9 - 1 - before
    assert counts[0] == (None, 0) and counts[1:] == [(left, done) for done in (2, 3, 3, 4, 7, *([] if output else [8]))]
    assert counts[-1] == (left, left) and one.meter.label == "answering"


def test_the_first_answers_count_and_not_the_time_before_them():
    meter = Meter("starting", None)
    meter.count_from(4, 1004)
    assert meter.words().startswith("answering: ") and " of " not in meter.words()
    meter.begin -= 10
    meter.advance(500)
    assert meter.words() == "answering: 504 of 1004 in 10 s, about 10 s left"


def test_what_is_left_is_reckoned_by_rows(tmp_path):
    """Of what is shown, and of what hosts that are back would gain: the longest texts are answered first."""
    one, _ = kept(tmp_path)
    one.meter = Meter("starting", None)
    one.known.gain = lambda more, present: 0.5
    for record in ({**BEGIN, "requests": 9}, answers(0, rows=50, left=200)):
        one.heard(record)
    assert one.gains(["a", "b"], ["a"]) is None  # nothing is known of how long rows take
    one.heard(answers(1, rows=100, left=50))
    one.meter.begin, one.since = one.meter.begin - 10, one.since - 10
    assert one.meter.words() == "answering: 2 of 9 in 10 s, about 5.0 s left"
    assert one.gains(["a", "b"], ["a"]) == pytest.approx(2.5, rel=0.01)


def test_what_a_start_does_is_shown_until_it_answers(tmp_path):
    one, _ = kept(tmp_path)
    one.heard({"kind": "doing", "what": "measuring"})  # nothing is shown yet
    one.meter = Meter("starting", None)
    labels = []
    for record in (BEGIN, {"kind": "doing", "what": "measuring"}, answers(0), answers(1), {"kind": "doing", "what": "loading weights"}):
        one.heard(record)
        labels.append(one.meter.label)
    assert labels == ["starting", "measuring", "answering", "answering", "answering"]


def test_what_was_kept_before_is_told_to_the_first_start(tmp_path):
    first, _ = kept(tmp_path)
    first.heard(BEGIN)
    first.heard(answers(1))
    first.journal.file.close()
    again, _ = kept(tmp_path, resume=True)
    assert again.state().finished == [1]
    again.heard(BEGIN)
    again.heard(answers(0))
    with pytest.raises(InputError, match="1 of 3 answers are missing"):
        finish(again)


def test_a_finished_output_is_left_as_it_is(tmp_path, capsys):
    one, said = kept(tmp_path)
    for record in (BEGIN, answers(0, 1, 2), DONE_RECORD):
        one.heard(record)
    finish(one)
    before = (tmp_path / "a.jsonl").stat()
    again, said = kept(tmp_path, resume=True)
    assert again.state().finished == [0, 1, 2] and not said
    for record in (BEGIN, DONE_RECORD):
        again.heard(record)
    finish(again)
    assert (tmp_path / "a.jsonl").stat().st_mtime_ns == before.st_mtime_ns and len(list(tmp_path.iterdir())) == 1
    other, _ = kept(tmp_path, resume=True)
    with pytest.raises(InputError, match="a.jsonl holds the answers of another run: its model has other weights"):
        other.heard({**BEGIN, "head": BEGIN["head"] | {"source_hash": "t"}})
    _, said = kept(tmp_path)
    assert said == [f"{tmp_path / 'a.jsonl'} is there already: it is replaced when all is answered"]


def test_what_was_answered_before_is_not_told_as_of_now(tmp_path, capsys):
    one, _ = kept(tmp_path)
    for record in (BEGIN, answers(2), answers(0)):
        one.heard(record)
    one.journal.file.close()
    again, _ = kept(tmp_path, resume=True)
    for record in (BEGIN, answers(1), DONE_RECORD):
        again.heard(record)
    finish(again)
    *_, summary, document = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"3 texts answered, 2 of them before, in 0.\d\d s" + RATE + "; answers in .*a.jsonl", summary), summary
    assert json.loads(document)["supervised"]["before"] == 2


def test_what_was_measured_is_kept_beside_the_hostfile(tmp_path):
    whole, other = cluster((3.0, 2.0, 1.0)), cluster((5.0, 4.0))
    record = {"kind": "measured", "method": "hepti", "spec": {}, "source_hash": "s", "demand": {}}
    one, _ = kept(tmp_path)
    assert one.state().profiles == []
    one.heard({**record, "profile": whole.to_json()})
    one.heard({**record, "profile": profiles.of_hosts(whole, ("pi0", "pi2")).to_json()})
    assert one.state().profiles == [whole] and kept(tmp_path)[0].state().profiles == [whole]
    one.heard({**record, "profile": other.to_json()})  # measured since what was known did not fit
    assert one.state().profiles == [whole, other]
    (tmp_path / "hosts.profile.json").write_text("{")
    again, said = kept(tmp_path)
    assert again.state().profiles == [] and "is not JSON" in said[0]


def test_another_input_on_the_next_first_host(tmp_path):
    one, _ = kept(tmp_path)
    one.heard(BEGIN)
    with pytest.raises(InputError, match="has another input_hash now"):
        one.heard({**BEGIN, "head": BEGIN["head"] | {"input_hash": "x"}})


@pytest.mark.parametrize("words, sentence", [
    (["h.txt", "--", "bench"], "what is to be supervised is a run"),
    (["h.txt", "--", "serve", "--port", "0"], "serve watches its hosts itself: python -m hepti_mpi serve HOSTFILE"),
    (["h.txt", "--", "run", "--repeat", "3"], "answers a file once"),
    (["h.txt", "--", "run", "--input", "-"], "answers a file once"),
    (["h.txt", "--", "run", "--plan", "p.json"], "--plan is for one set of hosts"),
    (["h.txt", "--", "run", "--shares", "1,2"], "--shares is for one set of hosts"),
    (["h.txt", "--", "run", "--nonsense"], "No such option"),
    (["gone.txt", "--", "run"], "gone.txt cannot be read"),
])  # fmt: skip
def test_what_cannot_be_supervised(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.txt").write_text("localhost\n")
    result = CliRunner().invoke(main.main, ["supervise", *words])
    assert result.exit_code != 0 and sentence in result.output + str(result.exception), result.output


def test_what_is_shown_of_a_record_that_was_cut_off():
    """The JSON document that ends a run followed on the line of what a killed rank had begun to tell."""
    assert channel.for_people('\x1e{"kind": "answers", "finished": [{') == "" and channel.for_people("hel") == "hel\n"
    assert doctest.testmod(channel).failed == 0
