"""Simulated drivers: they outlive their nodes, and tell the next one what it has to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from regrow.chaos.simulation.clients import Frame, SimClient
from regrow.chaos.simulation.programs import Result
from regrow.ids import CountedIds, driver_task_id
from regrow.messages import (
    PENDING,
    PROTOCOL_VERSION,
    Borrow,
    Bye,
    ClientMessage,
    Create,
    DefineFunctions,
    Hello,
    Put,
    PutValue,
    Read,
    Submit,
    Subscribe,
    Welcome,
    flags_of_driver,
)

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster


class SimDriver(SimClient):
    """A driver process."""

    role = "driver"

    def __init__(self, cluster: Cluster, site: int, job_name: str = "") -> None:
        super().__init__(cluster, f"d{site}")
        self.site = site
        self.job_name = job_name
        #: Which driver of its job it is, where that has a name.
        self.driver = 0
        self.frame = Frame(cluster.programs[site], b"", 0)
        self.finished = self.leaving = False
        self.welcome: Welcome | None = None
        self._connection = 0

    def later(self, ms: float, act: Any, *args: Any) -> None:
        self.world.after(ms, self._if_alive, act, args)

    def _if_alive(self, act: Any, args: tuple[Any, ...]) -> None:
        if self.alive:
            act(*args)

    def kill(self) -> None:
        """SIGKILL. Another process runs the same program again (``Cluster.fault_driver_kill``)."""
        self.world.trace(self.name, "is killed")
        self.alive, self.finished = False, True
        self.node = None

    # --- connecting -------------------------------------------------------------------------------

    def connect(self) -> None:
        """To a node that is up; tries again where none is."""
        if self.finished:
            return
        nodes = [node for node in self.cluster.nodes if node.core is not None and not node.paused]
        if not nodes:
            self.world.after(100, self.connect)
            return
        node = self.world.rng.choice(nodes)
        self.node = node
        job = self.frame.job
        hello = Hello(
            PROTOCOL_VERSION, "", self.role, self.site, job, entrypoint=self.name,
            job_name=self.job_name, driver=self.driver,
        )  # fmt: skip
        self.welcome = None
        self._connection += 1
        self.world.after(5_000, self._no_welcome, self._connection)
        self.number = node.connect(self, hello)

    def _no_welcome(self, connection: int) -> None:
        """A connection that is not welcomed in time is given up."""
        if self._connection == connection and self.welcome is None and self.node is not None:
            self.node.client_leaves(self)
            self.disconnected()

    def disconnected(self) -> None:
        """The node is gone: another one."""
        self.node = self.up = None
        self.welcome = None
        if not self.finished:
            self.world.after(self.world.rng.uniform(1, 200), self.connect)

    def send(self, message: ClientMessage) -> None:
        if self.welcome is not None:
            super().send(message)

    def flush(self) -> None:
        if self.welcome is not None:
            super().flush()
        else:
            self._specs.clear()  # they are uncommitted: sent when we are connected

    def welcomed(self, message: Welcome) -> None:
        super().welcomed(message)
        self.welcome = message
        frame = self.frame
        if not frame.job:
            self.driver = frame.driver = message.driver
            frame.job = message.job
            frame.task_id = driver_task_id(message.job_root)
            self.cluster.job_roots[message.job] = message.job_root
            if self.job_name:
                frame.content_ids = self.cluster.content_ids(message.job, frame.task_id)
            else:
                frame.counted = CountedIds(message.job_root)
            frame.passed_on = flags_of_driver(message.driver)
            if message.driver > 1:
                frame.epoch = b"\0driver %d" % message.driver
            self.begin(frame, [], [], False)
            return
        self.cluster.checks.require(message.job == frame.job, "a driver was given another job")
        self._resume_connection()
        if self.leaving:
            self.leave()

    def _resume_connection(self) -> None:
        """Says again what the new node has to know (``Client.resume`` and ``Link.attach``)."""
        if self.defined:
            self._send(DefineFunctions(list(self.defined.values())))
        if self.refs:
            self._send(Borrow(list(self.refs)))
        self._specs.clear()
        run: list[Raw] = []
        for item in self.uncommitted:
            if isinstance(item, Raw):
                run.append(item)
                continue
            if run:
                self._send(Submit(run, resent=True))
                run = []
            self._send(Put([item]) if isinstance(item, PutValue) else item)
        if run:
            self._send(Submit(run, resent=True))
        pending: list[bytes] = []
        reading: list[bytes] = []
        for oid, ref in self.refs.items():
            ref.pin = None  # the bytes stay mapped in the process, without a pin
            if ref.status == PENDING and ref.told:
                pending.append(oid)
            elif ref.reading:
                reading.append(oid)
        if pending:
            self._send(Subscribe(pending))
        if reading:
            self._send(Read(reading))
        if self.frame.sealing is not None:
            seal, _ = self.frame.sealing
            self._send(Create(seal.object_id, 0, seal.size))

    # --- the program ------------------------------------------------------------------------------

    def wake(self) -> None:
        frame = self.frame
        if frame.waits is None or frame.waits[0] == "time" or self.finished:
            return
        found, answer = self.found(frame)
        if found:
            frame.waits = None
            self.resume(frame, answer)

    def ended(self, frame: Frame, result: Result) -> None:
        """All values were as they have to be: everything is dropped."""
        self.flush()
        self.let_go(frame.handles)
        frame.handles = []
        frame.waits = ("end",)
        self.cluster.driver_done(self)

    def leave(self) -> None:
        """The job ends, as soon as a node hears of it."""
        self.leaving = True
        if self.welcome is not None and self.node is not None:
            self.finished = True
            self.send(Bye())
            self.node.client_leaves(self)

    def frame_that_writes(self, oid: bytes) -> Frame | None:
        return self.frame

    def status(self) -> str:
        """For the report of what did not happen."""
        waits = self.frame.waits
        if not waits or waits[0] not in ("get", "wait"):
            return f"{self.name} waits for {waits and waits[0]}"
        missing = [h.object_id.hex() for h in waits[1] if not self._ready(h, waits[0] == "get")]
        return f"{self.name} {waits[0]}s {', '.join(missing)}"
