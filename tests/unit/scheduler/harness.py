"""A node's core with the shell's duties played by the test: events in, effects out."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec import Raw

from regrow.config import Config
from regrow.gcs.operations import APPLIED, Batch
from regrow.ids import CountedIds, driver_task_id, object_id
from regrow.messages import (
    OK,
    PROTOCOL_VERSION,
    TASK,
    DefineFunctions,
    Done,
    FunctionDef,
    Hello,
    JobOpened,
    Nodes,
    NodeView,
    Resources,
    Return,
    Submit,
    TaskDone,
    TaskSpec,
    Values,
    encode,
)
from regrow.objectstore.core import StoreCore
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from regrow.scheduler.core import Core, NodeSettings
from regrow.scheduler.events import Effect, Event

E = TypeVar("E")

ROOT = bytes(16)
FUNCTION = FunctionDef(b"f" * 16, "f", b"pickled")
CPU: Resources = {"CPU": 10_000}
DRIVER = 1


def view(node_id: int, incarnation: int = 1, total: Resources | None = None) -> NodeView:
    """An idle node."""
    total = CPU if total is None else total
    return NodeView(node_id, incarnation, "h", 1, "", total, total, 0, {}, True, False)


class Harness:
    """Node 1 in its first incarnation, with a driver (client 1) of job 1. Every event is followed
    by the core's own check."""

    def __init__(self, cpus: int = 1, arena: int = 1 << 20, **config: Any) -> None:
        settings = NodeSettings(
            node_id=1, incarnation=1, total={"CPU": cpus * 10_000}, arena_size=arena,
            arena_path="", storage="", home="",
        )  # fmt: skip
        self.core = Core(settings, Config(**config), StoreCore(arena), lambda key: "file")
        self.ids = CountedIds(ROOT)
        self.effects: list[Effect] = []
        self._clients = DRIVER
        self._spilled = 0
        self.say(events.StoreSaid(Nodes([view(1, total=settings.total)])))

    def driver(self, durability: str = "commit") -> None:
        hello = Hello(PROTOCOL_VERSION, "", "driver", 1, durability=durability)
        self.say(events.ClientArrived(DRIVER, hello))
        self.say(events.StoreSaid(JobOpened(DRIVER, 1, ROOT)))
        self.client(DRIVER, DefineFunctions([FUNCTION]))

    def say(self, event: Event) -> list[Effect]:
        """What follows from one event; all of it is in ``effects`` too."""
        effects = self.core.handle(event)
        self.core.check()
        self.effects += effects
        return effects

    def client(self, client: int, message: Any) -> list[Effect]:
        return self.say(events.ClientSaid(client, message))

    def of(self, kind: type[E]) -> list[E]:
        """The effects of one kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def messages(self, client: int, kind: type[E]) -> list[E]:
        """The messages of one kind to a client so far."""
        return [
            effect.message
            for effect in self.of(events.ToClient)
            if effect.client == client and isinstance(effect.message, kind)
        ]

    def values(self, client: int) -> list[bytes]:
        """Ids of the objects that the client was told of."""
        return [v.object_id for message in self.messages(client, Values) for v in message.values]

    def spec(self, deps: list[bytes] | None = None, **fields: Any) -> TaskSpec:
        """A task of the driver."""
        task_id = self.ids.next_id()
        values: dict[str, Any] = {
            "resources": None, "num_returns": 1, "max_retries": 3, "flags": 0, "strategy": "",
        } | fields  # fmt: skip
        return TaskSpec(
            task_id, driver_task_id(ROOT), 1, FUNCTION.function_id, "f", TASK, b"", deps or [], [],
            values["resources"], values["num_returns"], values["max_retries"], values["flags"],
            values["strategy"],
        )  # fmt: skip

    def submit(self, *specs: TaskSpec, resent: bool = False) -> None:
        self.client(DRIVER, Submit([Raw(encode(spec)) for spec in specs], resent))

    def worker(self) -> int:
        """The next worker that the core asked for arrives; its client number."""
        self._clients += 1
        number = next(iter(self.core.pool.starting))
        hello = Hello(PROTOCOL_VERSION, "", "worker", 100 + number, number)
        self.say(events.ClientArrived(self._clients, hello))
        return self._clients

    def finish(
        self, worker: int, spec: TaskSpec, data: bytes = b"x", status: int = OK, attempt: int = 1
    ) -> list[Effect]:
        """The worker is done with a task that returns something small."""
        returned = Return(len(data), digest(data), data)
        return self.client(
            worker, Done([TaskDone(spec.task_id, attempt, status, [returned], 1000)])
        )

    def write_spills(self) -> None:
        """Every spill that was asked for is done."""
        while self._spilled < len(self.of(events.SpillBytes)):
            self._spilled += 1
            self.say(events.Spilled(self.of(events.SpillBytes)[self._spilled - 1].spill.key, True))

    def batches(self) -> list[Batch]:
        return [effect.batch for effect in self.of(events.AppendBatch)]

    def commit(self) -> list[Effect]:
        """The oldest batch in flight is applied."""
        number = self.core.journal.in_flight[0].number
        return self.say(events.Appended(number, APPLIED))

    def commit_all(self) -> None:
        """Until the log is empty."""
        while self.core.journal.open.records or self.core.journal.in_flight:
            if self.core.journal.in_flight:
                self.commit()
            else:
                self.say(events.FlushDue())


def first(spec: TaskSpec) -> bytes:
    """The id of its first return value."""
    return object_id(spec.task_id, 0)
