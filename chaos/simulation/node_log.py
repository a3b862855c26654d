"""A simulated node's connection to Postgres: appends in order, sent again if it breaks."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from regrow.chaos.simulation.world import Pipe
from regrow.gcs.operations import Append
from regrow.scheduler import events

if TYPE_CHECKING:
    from regrow.chaos.simulation.node import NodeShell


class NodeLog:
    """Of one life; what ``regrow.scheduler.logwriter`` does."""

    def __init__(self, node: NodeShell) -> None:
        self._node = node
        self._up: Pipe | None = None
        #: What Postgres answers.
        self.answers: Pipe | None = None
        self._unanswered: deque[Append] = deque()
        self._connection = 0
        #: When the last append was asked for.
        self.last_append = 0.0

    @property
    def idle(self) -> bool:
        """Whether all that was appended is answered."""
        return not self._unanswered

    def connect(self) -> None:
        node = self._node
        self._connection += 1
        self._up = Pipe(node.world, node.cluster.database_ms)
        self.answers = Pipe(node.world, node.cluster.latency)
        for append in self._unanswered:
            self._send(append)

    def append(self, append: Append) -> None:
        """The core has a batch."""
        self.last_append = self._node.world.now
        self._unanswered.append(append)
        if self._up is not None:
            self._send(append)

    def _send(self, append: Append) -> None:
        assert self._up is not None
        node = self._node
        self._up.send(node.cluster.database.append, node, node.life, self._connection, append)

    def appended(self, connection: int, append: Append, verdict: str, detail: str) -> None:
        """Postgres answered."""
        if connection != self._connection:
            return
        first = self._unanswered.popleft()
        assert first.number == append.number, "answers come in order"
        self._node.handle(events.Appended(append.number, verdict, detail))

    def break_off(self) -> bool:
        """The connection breaks, and is made anew. False: the node is down."""
        node = self._node
        if not node.up:
            return False
        node.world.trace(node.name, "loses its connection to Postgres")
        self.lose()
        node.schedule(node.life, node.world.rng.uniform(50, 400), self.connect)
        return True

    def lose(self) -> None:
        # What Postgres had received already is carried out; its answers are lost.
        if self._up is not None and self._node.world.rng.random() < 0.5:
            self._up.cut()
        self._up = None
        self._connection += 1
