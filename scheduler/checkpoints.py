"""Checkpoints of actors: when the state that a worker saved may be relied on.

Decides what a checkpoint waits for.  It is committed when its state is in Postgres (small) or in
storage, and with it every large object that the calls before it made: those calls are not run again
once there is a checkpoint, so nothing but their bytes can bring their results back.  Saving goes on
behind the calls; only with ``checkpoint_every=1`` a call's result waits for the state after it, so
that both are committed together and even a method that is not deterministic is exact.

The two newest checkpoints of an actor are kept: one that cannot be read falls back to the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from regrow.ids import is_put, object_id
from regrow.messages import Checkpoint, TaskDone
from regrow.scheduler import events
from regrow.scheduler.objects import Entry

if TYPE_CHECKING:
    from regrow.scheduler.actors import Actor
    from regrow.scheduler.core import Core
    from regrow.scheduler.tasks import Task
    from regrow.scheduler.workers import Worker

KEPT: Final = 2


class Saved:
    """A state that a worker saved."""

    __slots__ = ("custom", "object_id", "seq", "waits")

    def __init__(self, oid: bytes, seq: int, custom: bool) -> None:
        self.object_id = oid
        #: The last call that it contains.
        self.seq = seq
        #: Saved by the class's own ``save_checkpoint``.
        self.custom = custom
        #: Objects that are not in storage yet.
        self.waits: set[bytes] = set()


class Checkpoints:
    """Those of one actor, on its node."""

    __slots__ = ("committed", "exact", "held", "pending", "storing")

    def __init__(self) -> None:
        #: Large objects that its calls made, on their way to storage.
        self.storing: set[bytes] = set()
        self.pending: deque[Saved] = deque()
        self.committed: deque[Saved] = deque()
        #: The state after the call whose result comes next.
        self.exact: Saved | None = None
        #: Results that wait for the states saved with them, in order.
        self.held: deque[tuple[Worker, TaskDone, Saved | None]] = deque()


class Checkpointer:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # --- large objects ----------------------------------------------------------------------------

    def keep(self, actor: Actor, entry: Entry) -> None:
        """A large object that the actor made goes to storage, whoever lets go of it meanwhile."""
        checkpoints = actor.checkpoints
        oid = entry.object_id
        if entry.stored or oid in checkpoints.storing or entry.key is None:
            return
        checkpoints.storing.add(oid)

        def stored(event: events.Stored) -> None:
            checkpoints.storing.discard(oid)
            self._stored(actor, oid, bool(event.path))

        self.store(entry, stored)

    def keep_arguments(self, task: Task) -> None:
        """What its caller put for a call goes to storage at once, whoever lets go of it: the call
        may have to run again, and no task makes a driver's put again."""
        header = task.header
        for oid in (*header.deps, *header.nested):
            entry = self._core.objects.entries.get(oid)
            if is_put(oid) and entry is not None and entry.key is not None and not entry.stored:
                self.store(entry, lambda _: None)

    def store(self, entry: Entry, then: Callable[[events.Stored], None]) -> None:
        """Writes an object that is here to storage, whoever lets go of it meanwhile."""
        core, oid = self._core, entry.object_id
        entry.pins += 1

        def stored(event: events.Stored) -> None:
            core.objects.unpin((oid,))
            then(event)

        core.transport.store_bytes(entry, stored, core.config.storage_retry_s)

    def keep_result(self, task: Task, entry: Entry) -> None:
        """A large result of one of its calls."""
        actor = self._core.actors.table.get(task.header.actor_id)
        if actor is not None:
            self.keep(actor, entry)

    def _stored(self, actor: Actor, oid: bytes, ok: bool) -> None:
        checkpoints = actor.checkpoints
        waiting = list(checkpoints.pending)
        waiting += [saved for _, _, saved in checkpoints.held if saved is not None]
        for saved in waiting:
            if oid not in saved.waits:
                continue
            if ok:
                saved.waits.discard(oid)
            elif saved in checkpoints.pending:
                self._give_up(actor, saved)
        self._commit_ready(actor)
        self._release_held(actor)

    # --- states -----------------------------------------------------------------------------------

    def taken(self, worker: Worker, message: Checkpoint) -> None:
        """A worker saved its state."""
        actor = worker.actor
        core = self._core
        entry = core.objects.entries.get(message.object_id)
        if actor is None or entry is None or actor.restoration is not None:
            return
        entry.pins += 1
        saved = Saved(message.object_id, actor.seq, message.custom)
        if entry.key is not None:
            self.keep(actor, entry)
        if message.with_next:
            actor.checkpoints.exact = saved
            return
        saved.waits = set(actor.checkpoints.storing)
        actor.checkpoints.pending.append(saved)
        self._commit_ready(actor)

    def _commit_ready(self, actor: Actor) -> None:
        pending = actor.checkpoints.pending
        while pending and not pending[0].waits:
            self._commit(actor, pending.popleft())

    def _commit(self, actor: Actor, saved: Saved) -> None:
        core = self._core
        committed = actor.checkpoints.committed
        if committed and committed[-1].object_id == saved.object_id:
            core.objects.unpin((saved.object_id,))  # nothing changed: one object, held once
            committed[-1].seq = saved.seq
        else:
            committed.append(saved)
        core.journal.checkpoint(actor.actor_id, saved.seq, saved.object_id, saved.custom)
        while len(committed) > KEPT:
            self._delete(committed.popleft())

    def _delete(self, saved: Saved) -> None:
        """It is superseded, once those after it are committed."""
        core = self._core
        entry = core.objects.entries.get(saved.object_id)
        if entry is not None and entry.stored:
            effect = events.DeleteStored(saved.object_id)
            if not core.journal.hold(effect):
                core.emit(effect)
        core.objects.unpin((saved.object_id,))

    def _give_up(self, actor: Actor, saved: Saved) -> None:
        actor.checkpoints.pending.remove(saved)
        self._core.objects.unpin((saved.object_id,))
        self._core.journal.event(
            "checkpoint_failed",
            actor.actor_id,
            f"the state of {actor.name} after call {saved.seq} could not be stored; the actor goes "
            "on, and would be restored from the checkpoint before",
        )

    def forget(self, actor: Actor) -> None:
        """The actor is gone from this node."""
        checkpoints, actor.checkpoints = actor.checkpoints, Checkpoints()
        held = [saved for _, _, saved in checkpoints.held if saved is not None]
        if checkpoints.exact is not None:
            held.append(checkpoints.exact)
        for saved in [*checkpoints.committed, *checkpoints.pending, *held]:
            self._core.objects.unpin((saved.object_id,))

    # --- a state with every result ----------------------------------------------------------------

    def holds(self, actor: Actor) -> bool:
        """Whether results of the actor wait, so that later ones must, too."""
        return actor.checkpoints.exact is not None or bool(actor.checkpoints.held)

    def hold(self, worker: Worker, done: TaskDone) -> None:
        """A result that is committed with the state after it."""
        actor, core = worker.actor, self._core
        assert actor is not None
        checkpoints = actor.checkpoints
        saved, checkpoints.exact = checkpoints.exact, None
        for index, returned in enumerate(done.returns):
            if returned.data is None:
                oid = object_id(done.task_id, index)
                core.transport.seal((oid, done.attempt), returned.digest, worker.client)
                entry = core.objects.entry(oid)
                if entry.key is None:
                    entry.key = (oid, done.attempt)
                self.keep(actor, entry)
        if saved is not None:
            saved.waits = set(checkpoints.storing)
        checkpoints.held.append((worker, done, saved))
        self._release_held(actor)

    def _release_held(self, actor: Actor) -> None:
        held = actor.checkpoints.held
        while held and (held[0][2] is None or not held[0][2].waits):
            worker, done, saved = held.popleft()
            task = worker.in_flight.pop(done.task_id, None)
            if task is None or task.attempt != done.attempt:
                continue
            self._core.tasks.complete(task, done.status, done.returns, done.duration_us)
            if saved is not None:
                saved.seq = actor.seq
                self._commit(actor, saved)
