"""The tables of the simulated store: rows, and undoing what was changed.

Rows are immutable and changed through ``Table``, which remembers what was there, so that a batch
which is rejected half way leaves nothing behind. Decides nothing.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct

from regrow.gcs.operations import Outcome
from regrow.messages import PENDING, NodeView, SystemFailure, TaskHeader, Value

NodeKey = tuple[int, int]
K = TypeVar("K")
V = TypeVar("V")


class _Row(Struct, frozen=True):
    """Base of the rows."""


class NodeRow(_Row, frozen=True):
    """One incarnation."""

    view: NodeView
    ttl_s: float
    lease_expires_s: float
    last_batch: int = 0
    #: Which operation ended it.
    died: int = 0


class JobEntry(_Row, frozen=True):
    job_root: bytes
    driver_id: bytes
    status: str = "running"
    #: Of a named job.
    name: str = ""
    run: int = 0
    driver: int = 0
    runtime: str = ""
    detached: bool = False
    #: Of the request that started its latest driver.
    opener: bytes = b""
    on_changed_code: str = "error"


class TaskRow(_Row, frozen=True):
    header: TaskHeader
    #: Empty: trimmed.
    spec: bytes
    submitter: int
    holder: NodeKey
    attempt: int
    status: int = PENDING
    outcome: Outcome | None = None
    #: Which operation gave it to its holder; 0: it was submitted or handed over to it.
    given: int = 0


class PutEntry(_Row, frozen=True):
    parent_id: bytes
    job: int
    value: Value


class ActorEntry(_Row, frozen=True):
    job: int
    state: str
    name: str = ""
    namespace: str = ""
    function_id: bytes = b""
    node: NodeKey = (0, 0)
    error: SystemFailure | None = None
    #: Which operation buried it, with its node.
    died: int = 0
    methods: bytes = b""
    #: None before it started.
    max_restarts: int | None = None
    restarts: int = 0
    #: The last of its calls whose arguments are gone.
    trimmed_seq: int = 0

    @property
    def may_restart(self) -> bool:
        """Whether its limit allows another, if its job runs."""
        most = self.max_restarts
        lives = self.state in ("pending", "alive", "restarting")
        return lives and most is not None and (most < 0 or self.restarts < most)


class RebuildRow(_Row, frozen=True):
    task_id: bytes
    attempt: int
    holder: NodeKey
    open: bool = True
    #: None until it ends by itself.
    differs: bool | None = None


class Table(dict[K, V], Generic[K, V]):
    """Rows by key. What ``put`` and ``remove`` did is undone by ``roll_back``, until ``commit``."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[K, V | None]] = []

    def put(self, key: K, row: V) -> None:
        self._before.append((key, self.get(key)))
        self[key] = row

    def remove(self, key: K) -> None:
        """Does nothing if it is not there."""
        if key in self:
            self._before.append((key, self.pop(key)))

    def commit(self) -> None:
        self._before.clear()

    def roll_back(self) -> None:
        for key, row in reversed(self._before):
            if row is None:
                del self[key]
            else:
                self[key] = row
        self._before.clear()
