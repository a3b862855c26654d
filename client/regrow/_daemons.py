"""The processes of a cluster on this machine: starting them, finding them, ending them.

Decides how a daemon is started (its process group, its log, its environment) and which processes
are a home's. A daemon is known by its command line, never by a pid file alone, because pids are
given out again; its workers by its session, which they share. A zombie has no command line: it is
dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regrow import _home
from regrow.exceptions import ClusterConnectionError

GCS_MODULE = "regrow.gcs.main"
NODE_MODULE = "regrow.scheduler.daemon"
#: -P: a module of the user's in the current folder must not take the place of a standard one.
PYTHON = (sys.executable, "-P", "-m")
POLL_INTERVAL_S = 0.01

#: Daemons that this process started and that may outlive the session which did: a Popen that is
#: collected while its process runs complains, and whoever is here reaps them.
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class NodeOptions:
    """What a node offers. None: what the machine has."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    #: Bytes; the resource that tasks ask for.
    memory: int | None = None
    #: Bytes; the arena.
    object_store_memory: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Where its TCP port listens, and where other nodes find it.
    host: str = "127.0.0.1"
    #: Where it spills objects to; by default its own choice.
    spill_directory: str = ""

    def arguments(self) -> list[str]:
        """As the daemon takes them."""
        cpus = len(os.sched_getaffinity(0)) if self.num_cpus is None else self.num_cpus
        gpus = _gpus() if self.num_gpus is None else self.num_gpus
        arguments = ["--num-cpus", f"{cpus:g}", "--num-gpus", f"{gpus:g}"]
        arguments += ["--resources", json.dumps(dict(self.resources))]
        arguments += ["--memory", str(self.memory or 0)]
        arguments += ["--object-store-memory", str(self.object_store_memory or 0)]
        arguments += ["--labels", json.dumps(dict(self.labels)), "--host", self.host]
        if self.spill_directory:
            arguments += ["--spill-dir", self.spill_directory]
        return arguments


def _gpus() -> int:
    """The GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with contextlib.suppress(OSError):
        present = len(os.listdir("/proc/driver/nvidia/gpus"))
        if visible is None:
            return present
        return min(present, len([d for d in visible.split(",") if d.strip() not in ("", "-1")]))
    return 0


# Starting


class Daemon:
    """A daemon that this process started, in a session of its own."""

    def __init__(self, what: str, process: subprocess.Popen[bytes], log: Path, log_start: int):
        #: As people call it: "node" or "control store".
        self.what = what
        self.process = process
        self.log = log
        self._log_start = log_start

    @property
    def pid(self) -> int:
        """Also the number of its process group and session."""
        return self.process.pid

    def check(self) -> None:
        """Raise ClusterConnectionError, with what it logged last, if it has ended."""
        status = self.process.poll()
        if status is None:
            return
        said = _home.tail(self.log, self._log_start).replace("\n", "\n  ")
        ending = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise ClusterConnectionError(
            f"the {self.what} {ending} while it started; its log {self.log} "
            + (f"ends with:\n  {said}" if said else "is empty")
        )


class NodeDaemon(Daemon):
    """A node, which says on a pipe when it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, log_start: int, pipe: int):
        super().__init__("node", process, log, log_start)
        self._pipe = pipe
        self._said = b""
        #: 0 until it is ready.
        self.node_id = 0

    def poll_ready(self, timeout_s: float) -> bool:
        """Whether it is ready, waiting for so long. Raises ClusterConnectionError if it ended."""
        if self.node_id:
            return True
        self.check()
        if not select.select([self._pipe], [], [], timeout_s)[0]:
            return False
        said = os.read(self._pipe, 4096)
        self._said += said
        if not said:  # end of file: it has closed the pipe, which it does by ending
            self.process.wait()
            self.check()
        if b"\n" not in self._said:
            return False
        word, _, number = self._said.split(b"\n")[0].partition(b" ")
        assert word == b"ready", self._said
        self.node_id = int(number)
        self.close_pipe()
        return True

    def close_pipe(self) -> None:
        """Listen to it no longer."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def start_gcs(
    home: Path, *, ephemeral: bool, postgres: str | None, storage: str | None, listen: str
) -> Daemon:
    """Start the control store, which starts the embedded server if ``postgres`` is None.

    ``listen`` is HOST:PORT; with port 0 it chooses one.
    """
    command = [*PYTHON, GCS_MODULE, "--home", str(home), "--listen", listen]
    if ephemeral:
        command.append("--ephemeral")
    if storage is not None:
        command += ["--storage", storage]
    log = _home.log_path(home, "gcs")
    process, start = _spawn(command, _environment(home, postgres), log)
    return Daemon("control store", process, log, start)


def start_standby(home: Path, postgres: str | None, storage: str, host: str) -> Daemon:
    """Start a control store that takes over when the one that leads is gone."""
    command = [*PYTHON, GCS_MODULE, "--home", str(home), "--listen", f"{host}:0", "--standby"]
    log = _home.log_path(home, "gcs-standby")
    process, start = _spawn([*command, "--storage", storage], _environment(home, postgres), log)
    return Daemon("standby of the control store", process, log, start)


def start_node(
    home: Path,
    options: NodeOptions,
    *,
    name: str,
    head: bool = False,
    node_id: int = 0,
    postgres: str | None = None,
    password: str = "",
) -> NodeDaemon:
    """Start a node; it waits for the control store by itself. ``name`` is that of its log.

    ``password`` is for the server that the control store names.
    """
    runtime = _home.create_runtime_directory(home)
    reader, writer = os.pipe()
    command = [*PYTHON, NODE_MODULE, "--home", str(home)]
    command += ["--runtime-dir", str(runtime), *options.arguments(), "--ready-fd", str(writer)]
    if head:
        command.append("--head")
    if node_id:
        command += ["--node-id", str(node_id)]
    log = _home.log_path(home, name)
    try:
        environment = _environment(home, postgres)
        if password:
            environment["PGPASSWORD"] = password
        process, start = _spawn(command, environment, log, (writer,))
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return NodeDaemon(process, log, start, reader)


def _environment(home: Path, postgres: str | None) -> dict[str, str]:
    """The daemon's environment: a password is passed here, where only this user can see it."""
    environment = dict(os.environ)
    environment["REGROW_HOME"] = str(home)
    for name in ("REGROW_ADDRESS", "REGROW_POSTGRES", "REGROW_TOKEN"):
        environment.pop(name, None)
    if postgres is not None:
        environment["REGROW_POSTGRES"] = postgres
    return environment


def _spawn(
    command: list[str], environment: Mapping[str, str], log: Path, keep: tuple[int, ...] = ()
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a session of its own; the process, and where in its log it begins."""
    _started[:] = [process for process in _started if process.poll() is None]
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        start = os.fstat(descriptor).st_size
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=environment,
            start_new_session=True,
            pass_fds=keep,
        )
    finally:
        os.close(descriptor)
    _started.append(process)
    return process, start


# Finding


@dataclass(frozen=True)
class Found:
    """A daemon of a home, found in the process table."""

    pid: int
    module: str
    arguments: tuple[str, ...]

    @property
    def standby(self) -> bool:
        """A control store that was started to take over from another; it may lead by now."""
        return "--standby" in self.arguments

    @property
    def ephemeral(self) -> bool:
        """Of a control store: it ends when the last driver leaves."""
        return "--ephemeral" in self.arguments


def find(home: Path) -> list[Found]:
    """The living daemons of this home, whoever started them."""
    return [found for pid in _pids() if (found := identify(pid, home)) is not None]


def identify(pid: int, home: Path) -> Found | None:
    """The daemon of this home that has this pid; None if another process, or none, has it."""
    arguments = _command_line(pid)
    for module in (GCS_MODULE, NODE_MODULE):
        if module in arguments:
            rest = arguments[arguments.index(module) + 1 :]
            if "--home" in rest[:-1] and rest[rest.index("--home") + 1] == str(home):
                return Found(pid, module, rest)
    return None


def session_members(sessions: Iterable[int]) -> list[int]:
    """The living processes of these sessions, their leaders among them."""
    wanted = set(sessions)
    return [pid for pid in _pids() if _session(pid) in wanted]


def workers_of(session: int) -> list[int]:
    """The worker processes of the node with this session, which its fork server has made."""
    members = session_members([session])
    parents = {pid: _parent(pid) for pid in members}
    makers = {pid for pid in members if parents[pid] == session}
    return sorted(pid for pid in members if parents[pid] in makers)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def orphans(home: Path, sessions: Iterable[int]) -> list[int]:
    """Those of these sessions, of nodes that may be dead, in which processes of this home live."""
    mark = b"REGROW_HOME=" + os.fsencode(home)
    left = {_session(pid) for pid in session_members(sessions) if mark in _environ(pid)}
    return sorted(left - {0})


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _command_line(pid: int) -> tuple[str, ...]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ()
    return tuple(raw.decode(errors="surrogateescape").split("\0")[:-1])


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _session(pid: int) -> int:
    """The session of a living process; 0 of one that is dead or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name, in brackets, may hold anything; after it: state, parent, group, session.
    state, _, _, session = text.rpartition(")")[2].split()[:4]
    return 0 if state in "ZX" else int(session)


# Ending


def kill_sessions(sessions: Iterable[int], timeout_s: float = 5) -> bool:
    """SIGKILL every process of these sessions and reap our own; whether all are gone in time."""
    wanted = list(sessions)
    for pid in wanted:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    while members := session_members(wanted):
        for pid in members:  # those that left the group, and those that were just being forked
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    _reap(wanted)
    return True


def end(sessions: Iterable[int], grace_s: float) -> bool:
    """Ask the leaders of these sessions to stop, kill what is left after ``grace_s`` seconds.

    Returns whether all are gone.
    """
    wanted = list(sessions)
    for pid in wanted:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)  # to a node, SIGTERM means to give its work away first
    await_gone(wanted, grace_s)
    return kill_sessions(wanted)


def await_gone(sessions: Iterable[int], timeout_s: float) -> bool:
    """Wait until no process of these sessions lives; whether that happened in time."""
    wanted = list(sessions)
    deadline = time.monotonic() + timeout_s
    while session_members(wanted):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    _reap(wanted)
    return True


def _reap(pids: Iterable[int]) -> None:
    """Let those among these dead processes that are our children go."""
    wanted = set(pids)
    for process in _started:
        if process.pid in wanted:
            process.wait()
    _started[:] = [process for process in _started if process.returncode is None]
