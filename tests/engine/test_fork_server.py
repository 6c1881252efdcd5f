"""The process that forks a reader for every call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from syncflow.engine.media.fork_server import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="readers are forked on Linux")
READER = """
import os, sys, time
from syncflow.engine.media.fork_server import serve
count = 0

def read(message, answer):
    global count
    count += 1
    word = message.decode()
    if word == "crash":
        os.kill(os.getpid(), 11)
    if word == "fail":
        raise ValueError(word)
    if word == "sleep":
        time.sleep(60)
    with open(answer, "wb") as file:
        file.write(b"%s %d %d " % (message, count, os.getpid()) + b"x" * 200_000)

serve(read)
"""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    made = ForkServer(lambda calls: subprocess.Popen([sys.executable, "-c", READER], stdin=calls.fileno()))
    yield made
    made.close()


def answer(server: ForkServer, message: str) -> list[str]:
    content, code = server.call(message.encode())
    assert code == 0 and len(content) > 200_000
    return content.decode().split()[:3]


def processes_of(group: int) -> list[int]:
    """Readers and those that watch them."""
    found = Path(f"/proc/{group}/task/{group}/children").read_text().split()
    return [int(pid) for pid in found]


def idle(server: ForkServer) -> bool:
    """Whether the processes of all calls have ended, within ten seconds: they do so after the answer."""
    end = time.monotonic() + 10
    while processes_of(server.process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not processes_of(server.process.pid)


def test_every_call_begins_anew(server: ForkServer) -> None:
    one, two = answer(server, "one"), answer(server, "two")
    assert (one[0], one[1]) == ("one", "1") and (two[0], two[1]) == ("two", "1")
    assert one[2] != two[2]


def test_a_reader_that_fails_or_crashes_leaves_the_others(server: ForkServer) -> None:
    assert server.call(b"crash") == (b"", -signal.SIGSEGV)
    assert server.call(b"fail") == (b"", 1)
    assert answer(server, "one")[0] == "one"


def test_calls_of_many_threads_and_no_descriptor_stays_open(server: ForkServer) -> None:
    answer(server, "first")
    before = len(os.listdir("/proc/self/fd"))
    words = [f"word-{i}" for i in range(48)]
    with ThreadPoolExecutor(8) as pool:
        assert [found[0] for found in pool.map(lambda word: answer(server, word), words)] == words
    assert len(os.listdir("/proc/self/fd")) == before
    assert idle(server)


def test_a_server_that_was_killed_is_started_again(server: ForkServer) -> None:
    answer(server, "one")
    first = server.process
    first.kill()
    assert answer(server, "two")[0] == "two" and server.process.pid != first.pid and idle(server)
    with ThreadPoolExecutor(1) as pool:
        asleep = pool.submit(server.call, b"sleep")
        while not processes_of(server.process.pid):
            time.sleep(0.01)
        (watching,) = processes_of(server.process.pid)
        while not processes_of(watching):
            time.sleep(0.01)
        (reader,) = processes_of(watching)
        server.process.kill()
        assert answer(server, "three")[0] == "three"  # while the other reader is still there
        os.kill(reader, signal.SIGKILL)
        assert asleep.result(60) == (b"", -signal.SIGKILL)


def test_a_command_that_ends_at_once_is_an_error() -> None:
    server = ForkServer(lambda calls: subprocess.Popen(["true"], stdin=calls.fileno()))
    with pytest.raises(ConnectionError):
        server.call(b"one")
    server.close()


def test_a_forked_process_has_a_server_of_its_own(server: ForkServer) -> None:
    answer(server, "one")
    first = server.process.pid
    child = os.fork()
    if child == 0:
        fine = answer(server, "two")[0] == "two" and server.process.pid != first
        server.close()
        os._exit(not fine)
    assert os.waitpid(child, 0)[1] == 0
    assert answer(server, "three")[0] == "three" and server.process.pid == first


def test_it_ends_with_its_caller() -> None:
    script = (
        "import subprocess, sys, os; from syncflow.engine.media.fork_server import ForkServer; "
        "start = lambda calls: subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=calls.fileno()); "
        "server = ForkServer(start); "
        "server.call(b'one'); print(server.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", script, READER], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while Path(f"/proc/{int(said.stdout)}").exists() and "Z" not in state(int(said.stdout)):
        assert time.monotonic() < end
        time.sleep(0.01)


def state(pid: int) -> str:
    """A letter; Z where a process has ended and nobody has asked for its code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
