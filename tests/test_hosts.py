"""Hostfiles as mpirun and people write them, and whether two names are one machine; without ssh and without a network."""

import doctest
import hashlib
import os
import shlex
import socket
import subprocess
import threading
import time

import pytest
from terminals import PROGRAM, environment

from hepti_mpi.cluster.hostfile import faults
from hepti_mpi.cluster.hosts import Host, door_of, listed_hosts, read_hosts
from hepti_mpi.comm import names
from hepti_mpi.commands import push
from hepti_mpi.errors import HeptiError
from hepti_mpi.models.checkpoints.random import random_model
from hepti_mpi.weights import writing

KNOWN = {  # to the resolver
    "desk": ["127.0.1.1"], "alias": ["10.0.0.1"], "pi1": ["10.0.0.11"], "pi1.lan": ["10.0.0.11"], "pi2": ["10.0.0.12", "fd00::12"],
    "board": ["fd00::12"], "desk.elsewhere.org": ["203.0.113.9"], "pi1.elsewhere.org": ["203.0.113.11"], "localhost": ["127.0.0.1"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """This machine is desk.lan with an address in each of two networks."""

    def known(name, *_, **__):
        if names.address(name):
            return [(0, 0, 0, "", (str(names.address(name)), 0))]
        if name not in KNOWN:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in KNOWN[name]]

    monkeypatch.setattr(names, "_ANSWERS", {})
    monkeypatch.setattr(names, "_own", lambda: frozenset(["127.0.0.1", "::1", "10.0.0.1", "10.9.0.1", "fd00::1", "fe80::1"]))
    monkeypatch.setattr(names.socket, "getaddrinfo", known)
    monkeypatch.setattr(names.socket, "gethostname", lambda: "desk.lan")


def read(tmp_path, text):
    path = tmp_path / "hosts.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_hosts(path)


@pytest.mark.parametrize("text, lines", [
    ("a slots=4\nb\n", ["a slots=4", "b"]), ("# none\n\n pi@10.0.0.7 slots=1 # board\n", ["10.0.0.7 slots=1 username=pi"]),
    ("pi4-1.local", ["pi4-1.local"]), ("a   slots = 4\n", ["a slots=4"]), ("a\tslots=4\n", ["a slots=4"]),
    ("a slots=2 max_slots=4\nb slots=2 max-slots=4\n", ["a slots=2 max_slots=4", "b slots=2 max_slots=4"]),
    ("a max_slots=3", ["a slots=3 max_slots=3"]),
    ("a cpu=2\nb count=3", ["a slots=2", "b slots=3"]), ("a slots=1\r\nb slots=2\r\n", ["a slots=1", "b slots=2"]),
    ("a slots=1\rb\r", ["a slots=1", "b"]), ("\ufeffa slots=1\n", ["a slots=1"]), ("// x\na slots=2 // y\n", ["a slots=2"]),
    ("/* x\n y */ a slots=2\n", ["a slots=2"]), ("a slots=1 username=pi port=2222", ["a slots=1 username=pi port=2222"]),
    ("a user=pi", ["a username=pi"]), ("x@a user_name=pi", ["a username=pi"]), ("10.0.0.7:2\na:3\n", ["10.0.0.7 slots=2", "a slots=3"]),
    ("fd00::9 slots=1\n[fd00::8] slots=2\n[fd00::7]:3", ["fd00::9 slots=1", "fd00::8 slots=2", "fd00::7 slots=3"]),
    ("node_1\nN2", ["node_1", "N2"]),
    ("a slots=1\n# see /* there\nb slots=2\n# and */ here\n", ["a slots=1", "b slots=2"]), ("a /* x */ slots=2 // /* y\n", ["a slots=2"]),
    ("a\u00a0slots=2\n", ["a slots=2"]), ("::ffff:10.0.0.9", ["10.0.0.9"]), ("ro.ot@a slots=1", ["a slots=1"]),
    ("_u@pi4-1.local", ["pi4-1.local username=_u"]),
    ("a\nb\n^a\n", ["b"]), ("a\na\na\n", ["a slots=3"]), ("a slots=2\na\n", ["a slots=3"]), ("a\nA\npi@a\n", ["a slots=3"]),
    ("pi2 slots=1\nfd00::12\nboard\n", ["pi2 slots=3"]), ("10.0.0.1 slots=2\nlocalhost\nDesk\n", ["10.0.0.1 slots=4"]),
    ("10.0.0.1 slots=4", ["10.0.0.1 slots=4"]), ("desk.lan slots=4", ["desk.lan slots=4"]),
    ("desk.local slots=4", ["desk.local slots=4"]),
    ("DESK slots=4", ["localhost slots=4"]), ("::1", ["localhost"]), ("127.0.0.5 slots=1", ["localhost slots=1"]),
    ("alias", ["localhost"]),
    ("192.168.1.11\n192.168.1.12\n", ["192.168.1.11", "192.168.1.12"]), ("pi1\npi1.elsewhere.org\n", ["pi1", "pi1.elsewhere.org"]),
])  # fmt: skip
def test_hostfiles(tmp_path, text, lines):
    """What each of them means, written as mpirun reads it."""
    assert [host.line for host in read(tmp_path, text)] == lines


@pytest.mark.parametrize("text, words", [
    ("", "hosts.txt names no host"), ("# x\n", "names no host"), ("^a", "names no host"), ("a\n^A\n", "names no host"),
    (b"\xff\xfea\0", "is no text in UTF-8"), ("a\0 slots=1", "is no text: a byte"),
    ("-oProxyCommand=x\n", "line 1: '-oProxyCommand=x' is no name"), ("a;b\n", "is no name"),
    ("a\n$(x)", "line 2: .* is no name"), ("kn\u00f6ten", "is no name"), ("a@b@c d", "'a@b' is no name of a user"),
    ("3", "'3' is no address"),
    ("192.168.1.300", "is no address"), ("fe80::1%eth0", "an address of one link"), ("a,b,c", "is a list"), ("n[01-04]", "is a range"),
    ("+n0", "name the host"), ("+e:2", "name the host"), ("port slots=1", "port is a word of hostfiles"), ("_a.lan", "is no name"),
    ("a /* x", "'/\\*' stands after a"), ("rank 0=a slot=0", "is a rankfile"), ("a b", "'b' stands after a"),
    ("a slots", "slots has no value: write slots=N"),
    ("a slots=0", "slots=0 is no number above 0"), ("a slots=two", "slots=two is no number"), ("a slots=-1", "no number above 0"),
    ("a:2222", "is 2222 a port"), ("a port=x", "port=x is no number from 1 to 65535"), ("a port=70000", "no number from"),
    ("a foo=1", "foo= is not known"),
    ("a slots=1 slots=2", "two numbers of ranks"), ("a slots=3 max_slots=2", "max_slots=2 is less than slots=3"),
    ("a user=-x", "is no name of a user"),
    ("a\na slots=1\n", "line 2: a is the machine of line 1; give it one line with slots=N"),
    ("localhost slots=1\n127.0.0.1 slots=1\n", r"line 2: 127.0.0.1 is the machine of line 1 \(localhost\); give it one line"),
    ("pi1 slots=1\n10.0.0.11 slots=1\n", r"10.0.0.11 is the machine of line 1 \(pi1\)"), ("a port=1\na port=2\n", "with another port"),
])  # fmt: skip
def test_hostfiles_that_are_refused(tmp_path, text, words):
    with pytest.raises(HeptiError, match=words) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value) and not str(refused.value).endswith(".")
    with pytest.raises(HeptiError, match="cannot be read: No such file or directory; write one with a line for each host, such as: pi4-1 "):
        read_hosts(tmp_path / "gone.txt")


@pytest.mark.parametrize("text, said", [
    ("a slots=1\nb\nb\n10.0.0.1 slots=2\n", []), ("a\r\nb\r\n", ["carriage return, as 1 more"]), ("\ufeffa", ["byte order mark"]),
    ("a:2", ["form of MPICH"]),
    ("a user=pi", ["user= is not one of"]), ("a SLOTS=2", ["SLOTS= is not one of"]), ("[fd00::8]", ["in brackets"]),
    ("::1", ["knows as desk or localhost"]),
    ("alias", ["knows as desk or localhost"]), ("pi2\nboard\n", ["board is the machine of line 1 (pi2)"]),
    ("a\nA\n", ["A is the machine of line 1 (a)"]),
    ("pi1\npi1.elsewhere.org\n", ["both pi1 to mpirun"]),
    ("a slots=1\nb\n^a\n", ["^a leaves no host out"]), ("^pi@a\na\nb\n", ["^pi@a leaves no host out"]), ("a\n^b.lan\n", ["^b.lan leaves"]),
    ("a # last", ["ends within a comment"]), ("a\n// last", ["ends within a comment"]), ("a /* last */", []), ("/* x */ a // y\n", []),
    ("a /* x */ slots=1\n", ["a comment stands within"]), ("a\u00a0slots=1\n", ["a space of another kind"]), ("a slots=1 #\u00a0x\n", []),
    ("ro.ot@a\n", ["takes the user ro.ot"]), ("a username=ro.ot\n", ["takes the user ro.ot"]), ("a username=7", ["the user 7"]),
    ("_u@a\n7@a\n", []), ("_u@a.lan", ["_u@ is no user"]), ("u@fd00::9", []), ("::ffff:10.0.0.9", ["two kinds of addresses"]),
])  # fmt: skip
def test_what_mpirun_would_not_read_so(tmp_path, text, said):
    """As the lexer of mpirun 5 has it (openpmix/prrte, src/util/hostfile/hostfile_lex.l)."""
    path = tmp_path / "hosts.txt"
    path.write_bytes(text.encode())
    found = [one for host in listed_hosts(path) for _, one in host.foreign] + [one for _, one, _ in faults(text.encode())]
    assert len(found) == len(said) and all(words in one for words, one in zip(said, found)), found


@pytest.mark.parametrize("text, number, mend", [
    ("a slots=1\nb slots=1 # hi", 2, "echo >> {}"), ("a\nb\n# end", 3, "echo >> {}"), ("a # hi", 1, "echo >> {}"),
    ("a\nb\r\nc\n", 2, r"sed -i 's/\r$//; s/\r/\n/g' {}"), ("a\rb\rc", 1, r"sed -i 's/\r$//; s/\r/\n/g' {}"),
    ("a\r\nb\r\n", 1, r"sed -i 's/\r$//; s/\r/\n/g' {}"), ("\ufeffa\n", 1, r"sed -i '1s/^\xEF\xBB\xBF//' {}"),
])  # fmt: skip
def test_a_fault_of_the_file_is_in_its_own_line_and_its_mend_mends_it(tmp_path, text, number, mend):
    """The first host's line was blamed, and was to be written as it stood."""
    path = tmp_path / "some hosts.txt"
    path.write_bytes(text.encode())
    names = [host.name for host in listed_hosts(path)]
    [(found, said, told)] = faults(path.read_bytes())
    assert found == number and told.endswith(mend), (found, said, told)
    subprocess.run(told.partition(": ")[2].format(shlex.quote(str(path))), shell=True, check=True)
    assert not faults(path.read_bytes()) and [host.name for host in listed_hosts(path)] == names


@pytest.mark.parametrize("name, here", [
    ("localhost", True), ("LOCALHOST", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True),
    ("::ffff:10.0.0.1", True),
    ("desk", True), ("Desk", True), ("desk.lan", True), ("desk.lan.", True), ("desk.local", True), ("pi@desk", True),
    ("10.0.0.1", True),
    ("root@10.9.0.1", True), ("fd00::1", True), ("FD00:0::1", True), ("fe80::1", True), ("alias", True), ("10.0.0.11", False),
    ("pi1", False),
    ("desk.elsewhere.org", False), ("desk2", False), ("10.0.0.12", False), ("fd00::12", False), ("10", False), ("192.0.2.1", False),
])  # fmt: skip
def test_whether_a_name_is_this_machine(name, here):
    assert names.is_here(name) is here and Host(name).here is here


@pytest.mark.parametrize("one, other, same", [
    ("pi1", "PI1", True), ("pi1", "user@pi1", True), ("pi1", "pi1.lan", True), ("pi1", "10.0.0.11", True), ("board", "pi2", True),
    ("nobody", "nobody.local", True), ("nobody.local", "nobody.lan", False), ("192.168.1.11", "192.168.1.12", False),
    ("pi1", "pi2", False),
    ("pi1", "pi1.elsewhere.org", False), ("localhost", "10.9.0.1", True), ("localhost", "pi1", False), ("nobody", "10.0.0.7", False),
    ("fd00::12", "fd00:0:0::12", True), ("desk", "desk.elsewhere.org", False), ("alias", "127.0.0.1", True),
    ("192", "192.168.1.11", False),
])  # fmt: skip
def test_whether_two_names_are_one_machine(one, other, same):
    assert names.is_same(one, other) is names.is_same(other, one) is same


def test_what_a_host_calls_itself_is_guessed_from_a_name_only():
    given = ("192.168.1.11", "192.168.1.12", "Pi7.local", "127.0.0.1")
    assert [Host(name).own for name in given] == ["192.168.1.11", "192.168.1.12", "pi7", "desk"]


def test_ssh_goes_the_way_of_the_hostfile(tmp_path):
    [host] = read(tmp_path, "pi7 slots=1 port=2222 username=pi\n")
    assert host.ssh()[-3:] == ["-p", "2222", "pi@pi7"] and host.login == "pi@pi7" and Host("pi7").ssh()[-1] == "pi7"


def test_own_addresses():
    trie = """Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     +-- 192.168.1.0/24 2 0 2
        |-- 192.168.1.10
           /32 host LOCAL
        |-- 192.168.1.255
           /32 link BROADCAST
"""
    inet6 = "fd000000000000000000000000000002 02 40 00 80     eth0\n"
    assert list(names._local(trie, inet6)) == ["127.0.0.1", "192.168.1.10", "fd00::2"]
    assert names.own_addresses() == ("10.0.0.1", "10.9.0.1", "fd00::1")


def test_a_resolver_that_says_nothing_holds_nobody_up(tmp_path, monkeypatch):
    silent, asked = threading.Event(), []
    monkeypatch.setattr(names.socket, "getaddrinfo", lambda name, *_, **__: [asked.append(name), silent.wait()][2:])
    monkeypatch.setattr(names, "LOOK_UP_SECONDS", 0.5)
    monkeypatch.setattr(names, "AGAIN_SECONDS", 1000.0)
    hosts = read(tmp_path, "".join(f"node{number}\n" for number in range(300)) + "desk.local\nnode7.lan\n")
    assert len(hosts) == 301 and hosts[-1].here and len(asked) <= names.AT_ONCE  # those behind a silent one are not asked for
    silent.set()


def test_many_hosts_are_not_compared_with_each_other(tmp_path, monkeypatch):
    asked, compared = [], []
    monkeypatch.setattr(names.socket, "getaddrinfo", lambda name, *_, **__: [asked.append(name)][1:])
    monkeypatch.setattr(names, "AGAIN_SECONDS", 1000.0)
    monkeypatch.setattr(names, "is_same", lambda *two: compared.append(two))
    assert len(read(tmp_path, "".join(f"n{number:05d} slots=1\n" for number in range(1000)))) == 1000
    assert len(asked) == len(set(asked)) <= 1001 and not compared


def test_what_a_host_answers_need_not_be_utf_8(tmp_path, monkeypatch, capsys):
    """A greeting, a name, an error in the letters of an old system."""
    from hepti_mpi.commands import doctor
    from hepti_mpi.supervisor import sweep

    asked = rb"case $1$2$3 in *-G*) printf 'banner \377\nport 2222\nhostname pi\303\n'; exit 0;; esac"
    failed = rb"printf 'Stra\337e gesperrt\n' >&2; printf '\303\n'; exit 7"
    (tmp_path / "ssh").write_bytes(b"#!/bin/sh\n" + asked + b"\n" + failed + b"\n")
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "file").write_text("content")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sweep, "answers", lambda host: True)
    host, said = Host("192.0.2.9"), []
    assert door_of(host) == ("pi\ufffd", 2222)
    assert doctor._ask(host, "{}") == "Stra\ufffde gesperrt"
    assert not push._push(host, tmp_path / "file", "0", {}) and "192.0.2.9: Stra\ufffde gesperrt" in capsys.readouterr().err
    assert not sweep.sweep(host, tmp_path / "state", ["A=1"], b"", said.append)
    assert said == ["192.0.2.9 cannot be used: Stra\ufffde gesperrt"]


def test_a_host_whose_memory_ran_out_since_the_last_start(tmp_path, monkeypatch):
    """A rank that its system ended for that can say nothing. What it had ended before, and what ends behind the last start, is not told."""
    from hepti_mpi.supervisor import sweep

    (tmp_path / "ssh").write_text(f"#!/bin/sh\ncat >{tmp_path}/had\necho pi3.lan $(cat {tmp_path}/count)\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sweep, "answers", lambda host: True)
    host, said = Host("192.0.2.9"), []
    for count, content in ((3, b"first"), (3, b"again"), (5, b"again"), (9, b"")):
        (tmp_path / "count").write_text(str(count))
        assert sweep.sweep(host, tmp_path / "state", ["A=1"], content, said.append) and (host.own, host.starved) == ("pi3", count)
    ended = "for want of memory the system has ended 2 processes on 192.0.2.9 since the last start"
    assert said == [f"{ended}: free memory there, or give ranks less with --memory-limit"]


def test_examples():
    assert doctest.testmod(names).failed == 0


def test_what_is_typed_to_run_a_command_on_a_host():
    hosts = [Host("pi2"), Host("pi2", user="pi", port=2222), Host("desk", port=22)]
    assert [host.typed("uptime") for host in hosts] == ["ssh pi2 uptime", "ssh -p 2222 pi@pi2 uptime", "uptime"]


def test_what_copies_a_store_ends_with_who_asked_for_it(tmp_path):
    """ssh went on for minutes, and copied what nobody waited for."""
    began = tmp_path / "began"
    asked = f'case " $* " in *" -G "*) exit 0;; esac; head -c 4096 >/dev/null; echo $$ >{began}.new; mv {began}.new {began}; exec sleep 60'
    (tmp_path / "ssh").write_text(f"#!/bin/sh\n{asked}\n")
    (tmp_path / "ssh").chmod(0o755)
    writing.write(tmp_path / "tiny.h5", random_model("tiny-bert"))
    (tmp_path / "hosts.txt").write_text("192.0.2.9 slots=1\n")
    known = environment(PATH=f"{tmp_path}:{os.environ['PATH']}")
    with subprocess.Popen([*PROGRAM, "push", "tiny.h5", "hosts.txt"], cwd=tmp_path, env=known, stderr=subprocess.PIPE, text=True) as job:
        assert soon(began.exists)
        job.terminate()
        assert job.communicate(timeout=20) == (None, "interrupted\n") and job.returncode == 130
    assert soon(lambda: not os.path.exists(f"/proc/{began.read_text().strip()}"))


def soon(true):
    """Say whether something becomes true within 20 seconds."""
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


@pytest.mark.parametrize("there, sent, said, wrong, left", [
    (None, "content", "copied\n", "", "content"), ("other", "content", "copied\n", "", "content"),
    ("content", "", "there\n", "", "content"),
    (None, "conte", "", "it arrived damaged, or not whole: push it again\n", None),
    ("other", "", "", "it arrived damaged, or not whole: push it again\n", "other"),
])  # fmt: skip
def test_what_a_host_does_with_a_file_that_it_is_sent(there, sent, said, wrong, left, tmp_path):
    """A file that is not there yet is nothing to complain of."""
    path = tmp_path / "a folder" / "file"
    if there is not None:
        path.parent.mkdir()
        path.write_text(there)
    line = f"path={shlex.quote(str(path))} hash={hashlib.sha256(b'content').hexdigest()}{push.KEEP}"
    done = subprocess.run(["sh", "-c", line], input=sent, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (said, wrong, int(bool(wrong)))
    assert (path.read_text() if path.exists() else None) == left and len(list(path.parent.iterdir())) == (left is not None)
