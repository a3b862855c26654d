"""Bringing an actor back: its creation and the calls that it executed run again, in their order.

Decides what is fed to the new process and when the actor is itself again.  The runs are rebuilds:
they commit nothing, and what they make is compared with what was committed.  An actor that makes
something else than before is not itself: it dies with the reason, rather than go on from a state
that nobody has seen.  Where it is restored is the control store's decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from regrow.ids import object_id
from regrow.messages import (
    OK,
    ActorHere,
    HeldTask,
    RestoreActor,
    SystemFailure,
    header_decoder,
)

if TYPE_CHECKING:
    from regrow.scheduler.actors import Actor
    from regrow.scheduler.core import Core
    from regrow.scheduler.tasks import Task


class Restoration:
    """One actor on its way back."""

    __slots__ = ("calls", "checkpoint_seq", "last_seq", "left")

    def __init__(self, order: RestoreActor) -> None:
        #: To be run again, once the creation has.
        self.calls: list[HeldTask] = order.calls
        self.left = len(order.calls)
        self.last_seq = order.last_seq
        #: Of the checkpoint; 0: it begins with its constructor.
        self.checkpoint_seq = order.checkpoint_seq if order.checkpoint else 0


class Restorer:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def begin(self, order: RestoreActor) -> None:
        """The control store gave this node the actor. Asked twice, it does it once."""
        core = self._core
        creation = header_decoder.decode(order.creation.spec)
        if not core.admits(creation.job, order.creation.driver):
            return
        actor = core.actors.known(creation)
        if actor.worker is not None or actor.restoration is not None:
            return
        actor.recoverable = True
        actor.restoration = Restoration(order)
        core.actors.returns(actor)
        for held in order.calls:
            core.tasks.no_longer_elsewhere(header_decoder.decode(held.spec).task_id)
        of_this_driver = creation.driver == order.creation.driver
        self._hold_for_handles(actor, order.creation.submitter if of_this_driver else 0)
        if order.checkpoint:
            # Its constructor runs only where the class loads its state itself.
            before = creation.deps if order.custom else []
            nested = creation.nested if order.custom else []
            creation = replace(creation, deps=[*before, order.checkpoint], nested=nested)
        core.tasks.hold(order.creation, creation, rebuild=True, restore=order.checkpoint)

    def _hold_for_handles(self, actor: Actor, submitter: int) -> None:
        """The node where the actor was made knows of its handles. If that is gone, or an earlier
        driver of the job made the actor there, nobody does: it lives as long as its job."""
        entry = self._core.objects.entry(object_id(actor.actor_id, 0))
        view = self._core.nodes.get(submitter)
        # In a later incarnation it has forgotten them.
        knows = view is not None and view.alive and view.incarnation == 1
        if knows and submitter not in (self._core.node_id, 0):
            if entry.peers is None:
                entry.peers = {}
            entry.peers[submitter] = None
        elif not actor.pinned and not entry.owner:
            actor.pinned = True
            entry.pins += 1

    def created(self, actor: Actor, task: Task, status: int) -> None:
        """The constructor ran again."""
        restoration = actor.restoration
        if restoration is None:
            return
        if status != OK and restoration.checkpoint_seq:
            self._without_checkpoint(actor, restoration.checkpoint_seq)
            return
        if status != OK or task.worker is None:
            self.failed(actor, f"the constructor of {actor.name} failed when it ran again")
            return
        actor.worker = task.worker
        self._core.pool.become_actor(task.worker, actor, task)
        if actor.exiting:
            self._core.pool.kill(task.worker)
            return
        calls, restoration.calls = restoration.calls, []
        for held in calls:
            self._core.tasks.hold(held, rebuild=True)
        if not restoration.left:
            self._end(actor)

    def _without_checkpoint(self, actor: Actor, seq: int) -> None:
        """Its saved state cannot be read: the one before it, or the constructor, has to do."""
        core = self._core
        actor.restoration = None
        core.actors.returns(actor)
        message = f"the state of {actor.name} after call {seq} cannot be read and is dropped"
        core.journal.event("checkpoint_unreadable", actor.actor_id, message)
        core.warn_driver(actor.job, message)
        core.journal.checkpoint(actor.actor_id, seq, b"", False)
        core.send_store_held(ActorHere(actor.actor_id, actor.job, False))

    def replayed(self, actor: Actor, task: Task, differs: bool) -> None:
        """One of its calls ran again."""
        restoration = actor.restoration
        if restoration is None:
            return
        if differs:
            self.failed(
                actor,
                f"{task.header.name} made another result when it ran again to bring the actor "
                "back. Its methods have to be deterministic given its state and their arguments",
                "replay_difference",
            )
            return
        restoration.left -= 1
        if not restoration.left:
            self._end(actor)

    def _end(self, actor: Actor) -> None:
        """It is what it was: its callers go on."""
        core = self._core
        assert actor.restoration is not None
        actor.seq = actor.restoration.last_seq
        actor.restoration = None
        core.journal.actor(actor.actor_id, actor.job, True)
        core.send_store_held(ActorHere(actor.actor_id, actor.job, True))
        core.actors.is_back(actor)

    def failed(self, actor: Actor, why: str, code: str = "actor_died") -> None:
        """It cannot be brought back."""
        actor.restoration = None
        worker = actor.worker
        self._core.actors.died(actor, SystemFailure(code, f"{why}; the actor is dead."))
        if worker is not None:
            self._core.pool.kill(worker)
