"""Strangers, hostile programs and impossible requests: the system stays up and says what is
wrong."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import grpc
import msgspec
import pytest

import regrow as ray
from regrow._home import runtime_directory
from regrow.cluster_utils import Cluster
from regrow.exceptions import (
    ActorDiedError,
    RayTaskError,
    WorkerCrashedError,
)
from regrow.messages import (
    PROTOCOL_VERSION,
    Bye,
    DefineFunctions,
    FunctionDef,
    Hello,
    PeerHello,
    Refused,
    Submit,
    TaskSpec,
    encode,
    node_decoder,
)
from regrow.wire import FrameReader, frame
from tests.cluster.watching import node_files, rows

GARBAGE = {
    "noise": bytes(range(256)) * 64,
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "oversized": (0xFFFFFFFF).to_bytes(4, "little") + b"x" * 100,
    "oversized-for-a-stranger": (1 << 20).to_bytes(4, "little"),
    "half a frame": (1000).to_bytes(4, "little") + b"x" * 10,
    "no message": frame(b"\xc1"),
    "deeply nested": frame(b"\x91" * 4000),
    "empty frames": frame(b"") * 100,
    "a pickle": frame(cloudpickle.dumps(os.getpid)),
    "another first message": frame(encode(Bye())),
    "a wrong token": frame(encode(Hello(PROTOCOL_VERSION, "x" * 43, "driver", 1))),
    "a strange token": frame(encode(Hello(PROTOCOL_VERSION, "\u20ac", "driver", 1))),
    "two frames": frame(encode(Bye())) + frame(encode(Bye())),
    "a wrong peer": frame(encode(PeerHello(PROTOCOL_VERSION, "0" * 64, 1, 1))),
    "a strange peer": frame(encode(PeerHello(PROTOCOL_VERSION, "\u20ac", 1, 1, "bulk"))),
}


@ray.remote
def answer() -> int:
    return 42


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, own_environment: Path) -> Iterator[Cluster]:
    """One cluster for the tests that must leave it whole."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        cluster.connect()
        yield cluster


def works() -> bool:
    return bool(ray.get([answer.remote() for _ in range(4)], timeout=30) == [42] * 4)


def shout(target: Any, data: bytes, family: int) -> bytes:
    """Sends the bytes, half closes, and returns what is answered until the end."""
    with socket.socket(family) as sock:
        sock.settimeout(20)
        sock.connect(target)
        heard = b""
        # One that hangs up at once may have done so before this half closes: macOS and Linux then
        # say "not connected", which is an OSError and not a ConnectionError.
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                heard += piece
        return heard


# --- strangers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_on_any_socket_harms_nobody(running: Cluster, kind: str) -> None:
    data = GARBAGE[kind]
    node = node_files(running.home)[0]
    gcs = rows_of_gcs(running)
    arena = node["socket"].removesuffix(".sock") + ".arena"
    for family, target in (
        (socket.AF_UNIX, node["socket"]),
        (socket.AF_UNIX, arena),
        (socket.AF_INET, (node["host"], node["port"])),
        (socket.AF_INET, gcs),
    ):
        shout(target, data, family)
    assert works()
    assert running.head_node is not None
    assert running.head_node.alive()
    assert rows(running.home, "SELECT count(*) FROM regrow.nodes")[0][0] == 1, "it began anew"


def rows_of_gcs(cluster: Cluster) -> tuple[str, int]:
    host, _, port = msgspec.json.decode((cluster.home / "gcs.json").read_bytes())[
        "address"
    ].rpartition(":")
    return host, int(port)


def test_a_stranger_is_told_that_its_token_is_wrong(running: Cluster) -> None:
    heard = shout(node_files(running.home)[0]["socket"], GARBAGE["a wrong token"], socket.AF_UNIX)
    (body,) = FrameReader().feed(heard)
    message = node_decoder.decode(body)
    assert isinstance(message, Refused)
    assert message.code == "token"
    assert str(running.home) not in message.message


def test_the_control_store_refuses_streams_without_the_token(running: Cluster) -> None:
    host, port = rows_of_gcs(running)
    first_messages = [b"", b"\xc1", b"\x90", os.urandom(1000), b"\x91" * 100_000, b"x" * (1 << 20)]
    for first in first_messages:
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            call = channel.stream_stream("/regrow.ControlStore/Session")(iter([first]), timeout=20)
            heard = b""
            with contextlib.suppress(grpc.RpcError):  # it may be refused for its size alone
                heard = b"".join(call)
            assert b"node_id" not in heard
            assert len(heard) < 300
    assert works()


def test_nothing_of_a_stranger_is_unpickled(running: Cluster, tmp_path: Path) -> None:
    """A function and a task for it, sent without the token: code would run if it were loaded."""

    def poison() -> None:
        (tmp_path / "poisoned").touch()

    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    function = FunctionDef(b"f" * 16, "poison", cloudpickle.dumps(poison))
    bomb = FunctionDef(b"g" * 16, "bomb", cloudpickle.dumps(Bomb()))
    spec = TaskSpec(b"t" * 16, b"p" * 16, 1, b"f" * 16, "poison", 0, b"", [], [], None, 1, 0, 0, "")
    program = [DefineFunctions([function, bomb]), Submit([msgspec.Raw(encode(spec))])]
    said = b"".join(frame(encode(message)) for message in program)
    node = node_files(running.home)[0]
    shout(node["socket"], said, socket.AF_UNIX)
    shout(node["socket"], GARBAGE["a wrong token"] + said, socket.AF_UNIX)
    shout((node["host"], node["port"]), said, socket.AF_INET)
    shout((node["host"], node["port"]), GARBAGE["a wrong peer"] + said, socket.AF_INET)
    assert works()
    assert not list(tmp_path.iterdir())
    query = "SELECT count(*) FROM regrow.functions WHERE name IN ('poison', 'bomb')"
    assert rows(running.home, query)[0][0] == 0


def test_idle_strangers_do_not_keep_others_out(running: Cluster) -> None:
    node = node_files(running.home)[0]
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            for family, target in (
                (socket.AF_UNIX, node["socket"]),
                (socket.AF_INET, (node["host"], node["port"])),
            ):
                sock = stack.enter_context(socket.socket(family))
                sock.connect(target)
                sock.sendall(b"\x10\0")
        assert works()


# --- what lies around -----------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_sockets_and_secrets_are_the_users_own(running: Cluster) -> None:
    runtime = runtime_directory(running.home)
    assert mode(runtime) == 0o700
    sockets = [path for path in runtime.iterdir() if stat.S_ISSOCK(path.stat().st_mode)]
    assert len(sockets) >= 2
    assert {mode(path) for path in sockets} == {0o600}
    assert mode(running.home / "token") == 0o600
    assert mode(running.home / "gcs.json") == 0o600
    assert mode(running.home) == 0o700


def processes_of(cluster: Cluster) -> dict[int, list[str]]:
    """pid -> command line of everything that names the cluster's home."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
            if str(cluster.home).encode() in environ + command and int(entry.name) != os.getpid():
                found[int(entry.name)] = command.decode().split("\0")
    return found


def listening_addresses(pids: set[int]) -> set[str]:
    """The local addresses (hexadecimal, as the kernel shows them) on which the processes listen."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(fd)
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    addresses.add(fields[1].rpartition(":")[0])
    return addresses


def test_nothing_listens_beyond_loopback(running: Cluster) -> None:
    addresses = listening_addresses(set(processes_of(running)))
    assert addresses, "the node and the control store listen"
    mapped = "0000000000000000FFFF00000100007F"
    assert addresses <= {"0100007F", mapped, "00000000000000000000000001000000"}, addresses


def test_no_secret_is_on_a_command_line_or_in_a_log(running: Cluster) -> None:
    assert works()
    token = (running.home / "token").read_text().strip()
    for pid, command in processes_of(running).items():
        assert token not in " ".join(command), f"process {pid}: {command}"
    logs = [path for path in running.home.rglob("*") if path.is_file() and path.suffix == ".log"]
    assert logs
    for path in logs:
        assert token not in path.read_text(errors="replace"), path


# --- hostile programs -----------------------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled_is_named(running: Cluster) -> None:
    @ray.remote
    def take(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match=r"(?s)\block\b.*_thread.lock|_thread.lock.*\block\b"):
        take.remote(1, lock=threading.Lock())
    with pytest.raises(TypeError, match=r"(?s)(argument 1|1\b|second).*_thread.lock"):
        take.remote(1, {"inner": threading.Lock()})
    with pytest.raises(TypeError, match=r"_thread\.lock"):
        ray.put([threading.Lock()])
    assert works()


def test_a_captured_value_that_cannot_be_pickled_is_named(running: Cluster) -> None:
    guard = threading.Lock()

    @ray.remote
    def locked() -> bool:
        return guard.locked()

    with pytest.raises(TypeError, match="guard"):
        locked.remote()
    assert works()


def test_a_result_that_cannot_be_pickled_fails_its_task_alone(running: Cluster) -> None:
    @ray.remote
    def lock() -> Any:
        return {"inner": threading.Lock()}

    with pytest.raises(RayTaskError, match=r"inner.*_thread.lock"):
        ray.get(lock.remote(), timeout=30)
    assert works()


class Stubborn(Exception):
    """Neither pickles nor unpickles."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("stubborn")
        self.lock = threading.Lock()


class Halfway(Exception):
    """Pickles, and cannot be made again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("halfway")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Enormous(Exception):
    def __init__(self) -> None:
        super().__init__("x" * (8 << 20))


def raiser(kind: str) -> None:
    match kind:
        case "Stubborn":
            raise Stubborn(1, 2)
        case "Halfway":
            raise Halfway(1, 2)
        case "Unprintable":
            raise Unprintable
        case "Enormous":
            raise Enormous
        case "SystemExit":
            raise SystemExit(3)
        case "sys.exit":
            sys.exit("bye")
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "StopIteration":
            raise StopIteration(1)
        case "Group":
            raise ExceptionGroup("several", [Halfway(1, 2), ValueError("x")])
        case "Recursion":
            raiser(kind)
        case "Memory":
            bytearray(1 << 60)
        case "ExitGroup":
            raise BaseExceptionGroup("several", [SystemExit(1)])


KINDS = (
    "Stubborn", "Halfway", "Unprintable", "Enormous", "SystemExit", "sys.exit", "KeyboardInterrupt",
    "GeneratorExit", "StopIteration", "Group", "Recursion", "Memory", "ExitGroup",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_task_raises_is_an_error_of_that_task(running: Cluster, kind: str) -> None:
    task = ray.remote(raiser)
    with pytest.raises(RayTaskError) as caught:
        ray.get(task.remote(kind), timeout=30)
    assert "raiser" in str(caught.value)
    assert len(str(caught.value)) < 1 << 20

    class Holder:
        def run(self, kind: str) -> None:
            raiser(kind)

        def alive(self) -> bool:
            return True

    holder = ray.remote(Holder).remote()
    if kind in ("SystemExit", "sys.exit"):  # as in Ray, that ends an actor
        with pytest.raises(ActorDiedError, match=r"sys\.exit"):
            ray.get(holder.run.remote(kind), timeout=30)
        return
    with pytest.raises(RayTaskError):
        ray.get(holder.run.remote(kind), timeout=30)
    assert ray.get(holder.alive.remote(), timeout=30)


@ray.remote(max_retries=1)
def suicide(how: str, runs: str) -> str:
    with open(runs, "a") as file:
        file.write("x")
    match how:
        case "segfault":
            import ctypes

            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "os._exit":
            os._exit(0)
        case "close":
            os.closerange(3, 4096)
        case "fork":
            if os.fork() == 0:
                import signal

                signal.alarm(60)
                signal.pause()
                os._exit(0)
            os.abort()
    return "survived"


@pytest.mark.parametrize("how", ["segfault", "abort", "os._exit", "close"])
def test_a_task_that_kills_its_worker_is_failed_after_its_retries(
    running: Cluster, how: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(WorkerCrashedError, match="max_retries=1"):
        ray.get(suicide.remote(how, str(runs)), timeout=60)
    assert runs.read_text() == "xx"
    assert works()


def test_a_worker_that_left_a_child_behind_is_dead_all_the_same(
    running: Cluster, tmp_path: Path
) -> None:
    """The child has the worker's connection open."""
    known = set(processes_of(running))
    with pytest.raises(WorkerCrashedError):
        ray.get(suicide.remote("fork", str(tmp_path / "runs")), timeout=30)
    assert works()
    for pid, command in processes_of(running).items():
        if pid not in known and "_forkserver" in " ".join(command):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if parent not in processes_of(running):
                os.kill(pid, 9)


def test_an_actor_that_closes_its_descriptors_is_dead(running: Cluster) -> None:
    class Careless:
        def close(self) -> None:
            os.closerange(3, 4096)

        def alive(self) -> bool:
            return True

    careless = ray.remote(Careless).remote()
    with contextlib.suppress(ActorDiedError):  # its result is kept, if it was there in time
        ray.get(careless.close.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        ray.get(careless.alive.remote(), timeout=30)
    assert works()


def test_a_task_that_floods_its_output_does_not_stop_the_others(running: Cluster) -> None:
    @ray.remote
    def flood() -> int:
        for _ in range(2000):
            print("x" * 500)
        print("y" * (4 << 20))
        return 1

    assert ray.get([flood.remote(), flood.remote()], timeout=60) == [1, 1]
    assert works()


# --- what cannot be -------------------------------------------------------------------------------


INFEASIBLE = """
import regrow as ray
from regrow.exceptions import ActorUnschedulableError, TaskUnschedulableError
ray.init(num_cpus=1)

@ray.remote(num_cpus=64, resources={"moonstone": 2})
def impossible():
    return 1

@ray.remote(num_gpus=8)
class Impossible:
    def f(self):
        return 1

@ray.remote
def possible():
    return 1

ref = impossible.remote()
actor = Impossible.remote()
call = actor.f.remote()
assert ray.get(possible.remote(), timeout=30) == 1
print("STILL RUNNING", flush=True)
try:
    ray.get(ref, timeout=30)
except TaskUnschedulableError as error:
    print("TYPED", error, flush=True)
try:
    ray.get(call, timeout=30)
except ray.exceptions.RayError as error:
    print("ACTOR", type(error).__name__, error, flush=True)
assert ray.get(possible.remote(), timeout=30) == 1
"""


def test_infeasible_resources_are_said_at_once_and_fail_in_time(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "infeasible.py"
    program.write_text(INFEASIBLE)
    environment = {**os.environ, "REGROW_INFEASIBLE_TIMEOUT_S": "2"}
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "STILL RUNNING" in out
    typed = next(line for line in out.splitlines() if line.startswith("TYPED"))
    assert "moonstone" in typed
    assert "CPU: 64 asked, 1 there" in typed
    actor = next(line for line in out.splitlines() if line.startswith("ACTOR"))
    assert "GPU" in actor
    warnings = [line for line in done.stderr.splitlines() if "no node can ever run" in line]
    assert len(warnings) == 2, "once for each"
    assert warnings[0].startswith("(regrow) no node can ever run impossible: ")
    assert "moonstone" in warnings[0]
    assert warnings[1].startswith("(regrow) no node can ever run Impossible.__init__: ")
    assert "GPU" in warnings[1]


def test_a_node_that_is_no_node_is_infeasible_not_fatal(running: Cluster) -> None:
    class Affinity:
        def __init__(self, node_id: Any) -> None:
            self.node_id = node_id
            self.soft = True

    for node_id in (10**30, "7777"):
        ref = answer.options(scheduling_strategy=Affinity(node_id)).remote()
        assert ray.get(ref, timeout=30) == 42
    for node_id in ("ffffffff", "", "1:soft", -1, None):  # type: ignore[assignment]
        with pytest.raises(ValueError, match="node_id"):
            answer.options(scheduling_strategy=Affinity(node_id))


def test_impossible_numbers_are_refused_where_they_are_said(running: Cluster) -> None:
    for options in ({"num_cpus": -1}, {"num_cpus": float("nan")}, {"num_gpus": 1.5}):
        with pytest.raises(ValueError, match=r"num|negative|whole|CPU|GPU"):
            answer.options(**options)
    with pytest.raises((ValueError, OverflowError)):
        answer.options(num_cpus=float("inf"))
    with pytest.raises((ValueError, OverflowError)):
        answer.options(resources={"x": 1e300})
    assert works()
