"""The fork server and a worker, real processes, against a node that does what the test says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Raw

import regrow
from regrow._arguments import pack_arguments
from regrow._functions import define
from regrow.messages import (
    OK,
    TASK_ERROR,
    Blocked,
    Bye,
    Done,
    Exit,
    Hello,
    Output,
    Put,
    Returned,
    Run,
    RunTask,
    Submit,
    TakeBack,
    TaskDone,
    TaskSpec,
    Unblocked,
    encode,
)
from regrow.objectstore.serialization import deserialize
from regrow.scheduler.last_words import LastWords
from regrow.wire import FrameReader, frame
from tests.unit.client.fake_node import FakeNode

TIMEOUT_S = 15.0
done_decoder = msgspec.msgpack.Decoder(TaskDone)


class ForkServer:
    """The fork server as its node sees it."""

    def __init__(self, node: FakeNode, logs: Path) -> None:
        self._node = node
        self._logs = logs
        self._frames = FrameReader()
        self._told: list[dict[str, int]] = []
        self._fds: list[int] = []
        self.control, theirs = socket.socketpair()
        self.control.settimeout(TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "regrow._forkserver",
                    "--fd", str(theirs.fileno()), "--arena-fd", str(node.arena.fd),
                ],
                pass_fds=(theirs.fileno(), node.arena.fd),
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )  # fmt: skip

    def fork(self, number: int, **env: str) -> int:
        """Ask for a worker; its pid, once the node knows it."""
        pid = self.begin(number, **env)
        self._node.until(Hello, lambda hello: hello.number == number)
        return pid

    def begin(self, number: int, **env: str) -> int:
        """Ask for a worker; its pid."""
        surroundings = {"REGROW_NODE_SOCKET": self._node.path, "REGROW_TOKEN": "t", **env}
        request = {"number": number, "env": surroundings, "log": str(self._logs)}
        self.control.sendall(frame(msgspec.msgpack.encode(request)))
        return self.told(number, "pid")["pid"]

    def told(self, number: int, key: str) -> dict[str, int]:
        """What the fork server says of a worker; waits for it."""
        while True:
            for message in self._told:
                if message["number"] == number and key in message:
                    return message
            data, fds, _, _ = socket.recv_fds(self.control, 4096, 16)
            self._fds += fds
            assert data, "the fork server ended"
            self._told += [msgspec.msgpack.decode(body) for body in self._frames.feed(data)]

    def last_words(self) -> LastWords:
        """Of the worker that was forked first."""
        return LastWords(self._fds[0])

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self.control.close()
        self.process.wait(TIMEOUT_S)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(tmp_path) as fake:
        yield fake


@pytest.fixture
def server(node: FakeNode, tmp_path: Path) -> Iterator[ForkServer]:
    server = ForkServer(node, tmp_path)
    yield server
    server.close()


def task(node: FakeNode, number: int, function: Callable[..., Any], *args: Any) -> RunTask:
    def no_put(_: object) -> Any:
        raise AssertionError

    spec = TaskSpec(
        bytes([number]) * 16, b"p" * 16, 1, define(function).function_id, function.__name__, 0,
        b"", [], [], None, 1, 3, 0, "",
        args=pack_arguments(args, {}, no_put, "f").data,
    )  # fmt: skip
    return RunTask(Raw(encode(spec)), 1, [], [])


def run(node: FakeNode, *tasks: tuple[int, Callable[..., Any], tuple[Any, ...]]) -> None:
    definitions = {define(f).function_id: define(f) for _, f, _ in tasks}
    runs = [task(node, number, function, *args) for number, function, args in tasks]
    node.send(Run(runs, list(definitions.values())))


def done(node: FakeNode, number: int) -> TaskDone:
    wanted = bytes([number]) * 16
    message = node.until(Done, lambda m: any(t.task_id == wanted for t in m.tasks))
    return next(t for t in message.tasks if t.task_id == wanted)


def value(told: TaskDone) -> Any:
    data = told.returns[0].data
    assert data is not None
    return deserialize(data)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_worker_runs_tasks_and_tells_their_results(node: FakeNode, server: ForkServer) -> None:
    pid = server.fork(5)
    hello = node.until(Hello)
    assert (hello.role, hello.number, hello.pid) == ("worker", 5, pid)

    def fail(text: str) -> None:
        raise ValueError(text)

    run(node, (1, lambda x: x + 1, (41,)), (2, fail, ("no",)))
    assert value(done(node, 1)) == 42
    failed = done(node, 2)
    assert failed.status == TASK_ERROR
    assert isinstance(value(failed).cause, ValueError)


def test_a_large_result_is_written_into_the_arena(node: FakeNode, server: ForkServer) -> None:
    server.fork(1)
    run(node, (1, lambda n: np.arange(n), (50_000,)))
    [returned] = done(node, 1).returns
    assert returned.data is None
    assert returned.size > 400_000
    written = deserialize(node.arena.view(0, returned.size))
    assert np.array_equal(written, np.arange(50_000))


def test_a_worker_gives_back_what_it_has_not_begun(
    node: FakeNode, server: ForkServer, tmp_path: Path
) -> None:
    server.fork(1)

    def hold(folder: str) -> None:
        Path(folder, "began").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.01)

    run(node, (1, hold, (str(tmp_path),)), *[(n, len, ([],)) for n in (2, 3, 4)])
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    node.send(TakeBack(2))
    assert node.until(Returned).task_ids == [bytes([3]) * 16, bytes([4]) * 16]
    (tmp_path / "go").touch()
    assert done(node, 2).status == OK
    assert {t.task_id[0] for m in node.all(Done) for t in m.tasks} == {1, 2}


def test_a_task_that_waits_gives_back_its_cpu_and_its_queue(
    node: FakeNode, server: ForkServer
) -> None:
    server.fork(1)

    def parent() -> int:
        @regrow.remote
        def child() -> int:
            return 1

        return int(regrow.get(child.remote())) + 1

    run(node, (1, parent, ()), (2, len, ([],)))
    [child] = node.specs(1)
    assert child.parent_id == bytes([1]) * 16
    assert node.until(Blocked).task_id == bytes([1]) * 16
    assert node.until(Returned).task_ids == [bytes([2]) * 16]
    order = [type(m) for m in node.received]
    assert order.index(Submit) < order.index(Blocked)
    node.settle(child.task_id + bytes(4), 5)
    assert value(done(node, 1)) == 6
    assert node.until(Unblocked).task_id == bytes([1]) * 16


def test_a_replayed_parent_submits_the_same_ids(node: FakeNode, server: ForkServer) -> None:
    def parent() -> None:
        @regrow.remote
        def child(n: int) -> int:
            return n

        for n in (1, 1, 2):
            child.remote(n)
        regrow.put("small")

    server.fork(1)
    run(node, (1, parent, ()))
    done(node, 1)
    first = [spec.task_id for spec in node.specs(3)]
    assert len(set(first)) == 3
    run(node, (1, parent, ()))
    assert [spec.task_id for spec in node.specs(6)][3:] == first


def test_output_leaves_before_the_result(node: FakeNode, server: ForkServer) -> None:
    server.fork(1)
    run(node, (1, print, ("a\nb",)))
    done(node, 1)
    kinds = [type(m) for m in node.received]
    assert kinds.index(Output) < kinds.index(Done)
    outputs = node.all(Output)
    assert [line for output in outputs for line in output.lines] == ["a", "b"]
    assert {(output.stream, output.label) for output in outputs} == {(1, "print")}


def test_a_worker_ends_when_asked(node: FakeNode, server: ForkServer) -> None:
    pid = server.fork(1)
    node.send(Exit())
    node.until(Bye)
    assert os.waitstatus_to_exitcode(server.told(1, "status")["status"]) == 0
    assert gone(pid)


def test_the_fork_server_tells_how_a_worker_died(node: FakeNode, server: ForkServer) -> None:
    os.kill(server.fork(1), signal.SIGSEGV)
    assert os.WTERMSIG(server.told(1, "status")["status"]) == signal.SIGSEGV


def test_a_worker_whose_node_has_just_died_says_so_without_a_traceback(
    server: ForkServer, tmp_path: Path
) -> None:
    server.begin(1, REGROW_NODE_SOCKET=str(tmp_path / "nobody.sock"))
    assert os.waitstatus_to_exitcode(server.told(1, "status")["status"]) == 1
    said = "".join(path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert "cannot talk to the node" in said
    assert "Traceback" not in said


def test_workers_end_with_the_fork_server(node: FakeNode, server: ForkServer) -> None:
    pid = server.fork(1)
    server.process.kill()
    assert gone(pid)


def test_a_worker_ends_at_once_when_its_node_is_gone(
    node: FakeNode, server: ForkServer, tmp_path: Path
) -> None:
    pid = server.fork(1)

    def hold(folder: str) -> None:
        Path(folder, "began").touch()
        time.sleep(1000)

    run(node, (1, hold, (str(tmp_path),)))
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    node.die()
    assert gone(pid)


def test_workers_do_not_see_the_token_and_ignore_ctrl_c(node: FakeNode, server: ForkServer) -> None:
    pid = server.fork(1, EXTRA="yes")
    os.kill(pid, signal.SIGINT)

    def look() -> Any:
        return "REGROW_TOKEN" in os.environ, os.environ["EXTRA"], os.getpid()

    run(node, (1, look, ()))
    assert value(done(node, 1)) == (False, "yes", pid)


def test_forking_is_quick(node: FakeNode, server: ForkServer) -> None:
    server.fork(1)
    start = time.monotonic()
    for number in range(2, 12):
        server.fork(number)
    assert time.monotonic() - start < 2.0


def test_results_outlive_a_worker_that_dies_at_once_afterwards(
    node: FakeNode, server: ForkServer
) -> None:
    server.fork(1)
    words = server.last_words()

    def crash() -> None:
        os._exit(1)

    run(node, (1, len, ("a",)), (2, len, ("ab",)), (3, crash, ()))
    server.told(1, "status")
    sent = [t for message in node.all(Done) for t in message.tasks]
    kept = [done_decoder.decode(body) for body in FrameReader().feed(words.read())]
    assert {t.task_id[0]: value(t) for t in sent + kept} == {1: 1, 2: 2}
    words.close()


def test_what_a_result_may_refer_to_leaves_before_the_next_call_begins(
    node: FakeNode, server: ForkServer
) -> None:
    server.fork(1)

    def put() -> Any:
        return [regrow.put("small")]

    def crash() -> None:
        os._exit(1)

    run(node, (1, put, ()), (2, crash, ()))
    server.told(1, "status")
    assert [bytes([1]) * 16] == [t.task_id for t in node.until(Done).tasks]
    kinds = [type(m) for m in node.received]
    assert kinds.index(Put) < kinds.index(Done)


def test_what_a_running_task_writes_to_its_descriptors_is_told_before_it_ends(
    node: FakeNode, server: ForkServer, tmp_path: Path
) -> None:
    server.fork(1)

    def hold(folder: str) -> None:
        os.write(1, b"to the descriptor\n")
        while not Path(folder, "go").exists():
            time.sleep(0.01)

    run(node, (1, hold, (str(tmp_path),)))
    output = node.until(Output)
    assert (output.stream, output.label, output.lines) == (1, "hold", ["to the descriptor"])
    assert not node.all(Done)
    (tmp_path / "go").touch()
    assert done(node, 1).status == OK
