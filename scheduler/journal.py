"""The node's log: the open batch, and everything that may not leave before it is committed.

Save, then send: whoever has something for the world outside gives it to ``hold``; it goes out when
the batch that was open at that moment is committed, and with it everything logged before.  The
position in the log is the batch number.  A task that finishes before its batch is sent is one row.

Nothing here waits or does I/O: ``close`` hands a batch out, ``committed`` takes the answer in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from regrow.gcs.operations import Batch, Event, NewHolder, Outcome, PutRow, Submitted
from regrow.messages import FunctionDef, HandedTask, SystemFailure, Value
from regrow.scheduler.events import Effect

if TYPE_CHECKING:
    from regrow.scheduler.tasks import Task


class OpenBatch:
    """What the next append will say, and what waits for it."""

    __slots__ = (
        "acks", "actors", "checkpoints", "effects", "ended", "events", "functions", "handed",
        "holders", "number", "outcomes",
        "peer_values", "puts", "rebuilt", "records", "stored", "submitted", "values",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.records = 0
        self.functions: list[FunctionDef] = []
        self.submitted: dict[bytes, Task] = {}
        self.outcomes: dict[bytes, Outcome] = {}
        #: Once it is sent: the tasks whose outcomes it holds.
        self.ended: frozenset[bytes] = frozenset()
        self.holders: dict[bytes, NewHolder] = {}
        self.puts: list[PutRow] = []
        self.stored: list[tuple[bytes, str]] = []
        self.actors: list[tuple[bytes, int, bool, SystemFailure | None]] = []
        self.checkpoints: list[tuple[bytes, int, bytes, bool]] = []
        self.events: list[Event] = []
        self.rebuilt: list[tuple[bytes, bool]] = []
        #: Client -> how many of its submissions this batch commits.
        self.acks: dict[int, int] = {}
        #: Client -> values that wait for this batch.
        self.values: dict[int, list[Value]] = {}
        #: Node -> values that wait for it, and holder -> tasks that do.
        self.peer_values: dict[int, list[Value]] = {}
        self.handed: dict[tuple[int, int], list[HandedTask]] = {}
        #: Everything else that waits for it, in order.
        self.effects: list[Effect] = []

    @property
    def awaited(self) -> bool:
        """Whether anything waits for this batch."""
        return bool(self.values or self.effects or self.peer_values or self.handed)


class Journal:
    """See the module. ``self_id`` is (node, incarnation)."""

    def __init__(self, self_id: tuple[int, int]) -> None:
        self.self_id = self_id
        self.open = OpenBatch(1)
        #: Batches that were sent and are not committed yet, oldest first.
        self.in_flight: deque[OpenBatch] = deque()
        self.committed_number = 0
        #: Client -> submissions that are logged, but come after some that are looked up.
        self._deferred: dict[int, int] = {}

    # --- records ----------------------------------------------------------------------------------

    def submitted(self, task: Task, client: int) -> None:
        """A spec enters the log; ``client`` (0: none) is told when it is committed."""
        batch = self.open
        batch.submitted[task.header.task_id] = task
        batch.records += 1
        task.logged = True
        if client:
            self.acknowledge(client, 1)

    def has_ended(self, task_id: bytes) -> bool:
        """Whether the task's outcome is on its way to the log."""
        return any(task_id in batch.outcomes or task_id in batch.ended for batch in self.waiting())

    def acknowledge(self, client: int, count: int) -> None:
        """Submissions that need no record of their own are acknowledged with the open batch."""
        acks = self._deferred if client in self._deferred else self.open.acks
        acks[client] = acks.get(client, 0) + count

    def defer(self, client: int) -> None:
        """Acknowledgements are counts, in the order of submission: while it is being looked up what
        became of some, nothing is acknowledged."""
        self._deferred.setdefault(client, 0)

    def go_on(self, client: int) -> None:
        """Nothing is looked up for the client any more."""
        count = self._deferred.pop(client, 0)
        if count:
            self.acknowledge(client, count)

    def outcome(self, outcome: Outcome) -> None:
        """A task ended; its row is updated, or made whole if it is in the open batch still."""
        self.open.outcomes[outcome.task_id] = outcome
        self.open.records += 1

    def new_holder(self, task: Task, holder: tuple[int, int]) -> None:
        """The task's holder or attempt changed."""
        task.holder = holder
        task_id = task.header.task_id
        if task_id not in self.open.submitted:
            self.open.holders[task_id] = NewHolder(task_id, task.attempt, holder)
            self.open.records += 1

    def function(self, definition: FunctionDef) -> None:
        self.open.functions.append(definition)
        self.open.records += 1

    def put(self, row: PutRow, client: int) -> None:
        self.open.puts.append(row)
        self.open.records += 1
        if client:
            self.acknowledge(client, 1)

    def stored(self, object_id: bytes, path: str) -> None:
        self.open.stored.append((object_id, path))
        self.open.records += 1

    def actor(
        self, actor_id: bytes, job: int, alive: bool, error: SystemFailure | None = None
    ) -> None:
        self.open.actors.append((actor_id, job, alive, error))
        self.open.records += 1

    def checkpoint(self, actor_id: bytes, seq: int, oid: bytes, custom: bool) -> None:
        """An actor's state after its ``seq``-th call is safe; an empty ``oid``: it was not."""
        self.open.checkpoints.append((actor_id, seq, oid, custom))
        self.open.records += 1

    def event(self, kind: str, subject: bytes, message: str) -> None:
        self.open.events.append(Event(kind, subject, message))
        self.open.records += 1

    def rebuilt(self, task_id: bytes, differs: bool) -> None:
        self.open.rebuilt.append((task_id, differs))
        self.open.records += 1

    # --- output commit ----------------------------------------------------------------------------

    @property
    def clean(self) -> bool:
        """Whether everything logged so far is committed, so that nothing need be held."""
        return not self.open.records and not self.in_flight

    def gate(self) -> OpenBatch | None:
        """The batch that an output of this moment has to wait for; None if all is committed."""
        if self.open.records:
            return self.open
        return self.in_flight[-1] if self.in_flight else None

    def hold(self, effect: Effect) -> bool:
        """Keeps ``effect`` until all that was logged so far is committed. False: nothing to wait
        for, the caller sends it at once."""
        gate = self.gate()
        if gate is None:
            return False
        gate.effects.append(effect)
        return True

    def hold_value(self, client: int, value: Value) -> bool:
        """As ``hold``, for one value to a client: those of one batch go out as one message."""
        gate = self.gate()
        if gate is None:
            return False
        values = gate.values.get(client)
        if values is None:
            gate.values[client] = [value]
        else:
            values.append(value)
        return True

    def withdraw(self, node_id: int, object_ids: Sequence[bytes]) -> None:
        """The peer is not to be told of these any more."""
        for batch in self.waiting():
            values = batch.peer_values.pop(node_id, None)
            left = [v for v in values or () if v.object_id not in object_ids]
            if left:
                batch.peer_values[node_id] = left

    # --- batches ----------------------------------------------------------------------------------

    def close(self) -> tuple[int, Batch]:
        """Ends the open batch and hands it out for the append; a new one is open."""
        open_batch = self.open
        self.open = OpenBatch(open_batch.number + 1)
        self.in_flight.append(open_batch)
        outcomes = open_batch.outcomes
        ended = frozenset(outcomes)
        submitted = [
            Submitted(
                task.header,
                bytes(task.spec),
                task.submitter,
                task.holder,
                task.attempt,
                outcomes.pop(task_id, None) if outcomes else None,
            )
            for task_id, task in open_batch.submitted.items()
        ]
        # A task that ended needs no new holder.
        batch = Batch(
            functions=open_batch.functions,
            submitted=submitted,
            outcomes=list(outcomes.values()),
            holders=list(open_batch.holders.values()),
            puts=open_batch.puts,
            stored=open_batch.stored,
            actors=open_batch.actors,
            checkpoints=open_batch.checkpoints,
            events=open_batch.events,
            rebuilt=open_batch.rebuilt,
        )
        # The specs are Postgres's now: a task's row can only be updated from here on.
        open_batch.submitted = {}
        open_batch.outcomes = {}
        open_batch.ended = ended
        return open_batch.number, batch

    def committed(self, number: int) -> OpenBatch:
        """The oldest batch in flight is in Postgres: returns it, with what waited for it."""
        batch = self.in_flight.popleft()
        assert batch.number == number, "batches are committed in order"
        self.committed_number = number
        return batch

    @property
    def pending(self) -> bool:
        """Whether anything is yet to be committed."""
        return bool(self.in_flight or self.open.records)

    def waiting(self) -> Iterator[OpenBatch]:
        """All batches that are not committed, oldest first."""
        yield from self.in_flight
        yield self.open

    def check(self) -> None:
        """Invariants: numbers without gaps."""
        expected = self.committed_number + 1
        for batch in self.waiting():
            assert batch.number == expected, "a batch number is missing"
            expected += 1
