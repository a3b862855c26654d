"""Actors that restart: where each is restored.

Part of the control store's core: no I/O, no clock. Postgres holds which actors restart and whose
turn it is to restore them (``RestoreActor`` moves an actor from the home that lost it to one other,
so two nodes never do); here is what is under way, and what waits for a node that can take it.
"""

from __future__ import annotations

from collections.abc import Callable

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import ActorRestored, RestartingActor, RestoreActor
from regrow.messages import RestoreActor as Restore
from regrow.messages import SystemFailure


class _Restoring(Continuation):
    actor: RestartingActor


class Restarts:
    """Set by the core: ``dead(actor_id, job, error)`` where the log says that one will not come
    back."""

    def __init__(self, context: Context, members: Membership) -> None:
        self._context = context
        self._members = members
        #: Actors that are not back yet: (actor, where it is being restored; None: nowhere yet).
        self._actors: dict[bytes, tuple[RestartingActor, tuple[int, int] | None]] = {}
        self.dead: Callable[[bytes, int, SystemFailure], None]
        context.on(_Restoring, self._granted)

    @property
    def under_way(self) -> bool:
        """Whether an actor is on its way back, and with it what only it had."""
        return bool(self._actors)

    def lost(self, actors: list[RestartingActor]) -> None:
        """Their processes or nodes are gone."""
        for actor in actors:
            known = self._actors.get(actor.actor_id)
            if known is None or known[0].home != actor.home or known[1] is None:
                self._place(actor)

    def remind(self, actors: list[RestartingActor]) -> None:
        """Their home resumed its session: what it was told of them just before may be lost."""
        for actor in actors:
            self._place(actor)

    def _place(self, actor: RestartingActor) -> None:
        node = self._members.choose(actor.home[0], actor.resources or {})
        self._actors[actor.actor_id] = actor, node.key if node is not None else None
        if node is not None:
            operation = RestoreActor(self._context.epoch, actor.actor_id, actor.home, node.key)
            self._context.execute(operation, _Restoring(actor))

    def _granted(self, then: _Restoring, reply: Reply) -> None:
        result: ActorRestored = reply.result
        operation: RestoreActor = reply.operation
        actor = then.actor
        known = self._actors.get(actor.actor_id)
        if result.error is not None:
            self._actors.pop(actor.actor_id, None)
            self.dead(actor.actor_id, result.job or actor.job, result.error)
        elif result.granted and result.creation is not None:
            target = operation.target
            if not self._members.is_alive(*target):
                return  # its death told of the actor anew
            self._actors[actor.actor_id] = (
                RestartingActor(actor.actor_id, result.job, target, actor.resources),
                target,
            )
            conn = self._members.nodes[target[0]].conn
            message = Restore(
                actor.actor_id, result.job, result.creation, result.calls, result.last_seq,
                result.functions, result.checkpoint, result.checkpoint_seq, result.custom,
            )  # fmt: skip
            self._context.send(conn, message)
        elif known is not None and known[1] == operation.target:
            del self._actors[actor.actor_id]  # it moved on, or is back

    def back(self, actor_id: bytes) -> None:
        """It lives again."""
        self._actors.pop(actor_id, None)

    def joined(self) -> None:
        """A new node may take what no other could."""
        for actor, target in list(self._actors.values()):
            if target is None:
                self._place(actor)

    def node_died(self, node: Node) -> None:
        """What was to be restored there is told of with its death; else its home is dead still."""
        for actor, target in list(self._actors.values()):
            if target == node.key:
                self._place(actor)

    def job_closed(self, job: int) -> None:
        for actor_id in [key for key, (actor, _) in self._actors.items() if actor.job == job]:
            del self._actors[actor_id]

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for _, target in self._actors.values():
            assert target is None or self._members.is_alive(*target)
