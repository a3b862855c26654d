"""Actors: where they are, by id and by name, and who is told when one dies.

Part of the control store's core: no I/O, no clock. What is committed about actors is in Postgres;
here is what nodes said since, for actors that somebody asked about or that were just created.
"""

from __future__ import annotations

from typing import Final

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import ActorRow, ReadActor, ReserveActorName, RestartingActor
from regrow.gcs.restarts import Restarts
from regrow.messages import (
    ActorAt,
    ActorHere,
    FindActor,
    NameActor,
    NamedActor,
    SystemFailure,
    encode,
)
from regrow.messages import Reply as Answer

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 1.0
#: Dead actors that are remembered, until Postgres surely knows of their death.
DEAD_REMEMBERED: Final = 1000

_Asker = tuple[int, int]


class _Actor:
    __slots__ = (
        "error", "job", "node",
        "reading", "retry_at", "tries", "waiters", "watchers",
    )  # fmt: skip

    def __init__(self) -> None:
        #: (node id, incarnation) where it runs; None: not known yet.
        self.node: tuple[int, int] | None = None
        #: Why it is dead.
        self.error: SystemFailure | None = None
        self.job = 0
        #: Those who asked and have no answer yet: (asker, number).
        self.waiters: list[tuple[_Asker, int]] = []
        #: Nodes that were told where it is, and are told of its death.
        self.watchers: dict[_Asker, None] = {}
        self.reading = False
        self.retry_at = 0.0
        self.tries = 0


class _Naming(Continuation):
    asker: _Asker
    number: int


class _FindingName(Continuation):
    asker: _Asker
    number: int


class _Finding(Continuation):
    pass


class Actors:
    def __init__(self, context: Context, members: Membership, restarts: Restarts) -> None:
        self._context = context
        self._members = members
        self._restarts = restarts
        self._actors: dict[bytes, _Actor] = {}
        self._dead: dict[bytes, None] = {}
        #: Actors that somebody waits for.
        self._wanted: dict[bytes, None] = {}
        context.on(_Naming, self._name_reserved)
        context.on(_FindingName, self._name_read)
        context.on(_Finding, self._actor_read)

    # names

    def name(self, node: Node, message: NameActor) -> None:
        operation = ReserveActorName(
            self._context.epoch, message.actor_id, message.name, message.namespace,
            message.job, message.function_id, message.methods,
        )  # fmt: skip
        self._context.execute(operation, _Naming(node.key, message.number))

    def _name_reserved(self, then: _Naming, reply: Reply) -> None:
        """The answer's body is the id of the actor that has the name."""
        row: ActorRow = reply.result
        operation: ReserveActorName = reply.operation
        error = None
        if row.actor_id != operation.actor_id:
            text = (
                f"the name {operation.name!r} is taken in namespace {operation.namespace!r} "
                f"by actor {row.actor_id.hex()}; choose another, or get that one with get_actor"
            )
            error = SystemFailure("actor_name_taken", text)
        self._context.send(self._conn(then.asker), Answer(then.number, row.actor_id, error))

    # questions

    def find(self, node: Node, message: FindActor) -> None:
        if not message.actor_id:
            operation = ReadActor(b"", message.name, message.namespace)
            self._context.execute(operation, _FindingName(node.key, message.number))
        else:
            self._wait(message.actor_id, node.key, message.number)

    def _name_read(self, then: _FindingName, reply: Reply) -> None:
        row: ActorRow = reply.result
        operation: ReadActor = reply.operation
        if row.found:
            body = encode(NamedActor(row.actor_id, row.function_id, row.methods))
            self._context.send(self._conn(then.asker), Answer(then.number, body))
            return
        text = (
            f"no actor has the name {operation.name!r} in namespace {operation.namespace!r}; "
            "it was never created, or it died"
        )
        error = SystemFailure("actor_not_found", text)
        self._context.send(self._conn(then.asker), Answer(then.number, b"", error))

    def _wait(self, actor_id: bytes, asker: _Asker, number: int) -> None:
        """Answers at once what is known, else when it is."""
        actor = self._actors.setdefault(actor_id, _Actor())
        actor.waiters.append((asker, number))
        self._wanted[actor_id] = None
        if not self._tell_waiters(actor_id, actor):
            self._read(actor_id, actor)

    def _read(self, actor_id: bytes, actor: _Actor) -> None:
        if not actor.reading:
            actor.reading = True
            self._context.execute(ReadActor(actor_id), _Finding())

    def _actor_read(self, then: _Finding, reply: Reply) -> None:
        operation: ReadActor = reply.operation
        row: ActorRow = reply.result
        actor = self._actors.get(operation.actor_id)
        if actor is None:
            return
        actor.reading = False
        actor.retry_at = self._context.now + min(RETRY_FIRST_S * 2**actor.tries, RETRY_MAX_S)
        actor.tries = min(actor.tries + 1, 10)
        if row.found:
            self._learn(row)

    def _learn(self, row: ActorRow) -> None:
        """What Postgres says, where no node has said more."""
        actor = self._actors.setdefault(row.actor_id, _Actor())
        actor.job = row.job or actor.job
        if actor.node is None and actor.error is None:
            if row.state == "alive" and self._members.is_alive(row.node_id, row.incarnation):
                actor.node = row.node_id, row.incarnation
            elif row.state == "dead":
                actor.error = row.error or SystemFailure("actor_died", "the actor is dead")
                self._bury(row.actor_id)
        self._tell_waiters(row.actor_id, actor)

    def _tell_waiters(self, actor_id: bytes, actor: _Actor) -> bool:
        """Whether there is an answer."""
        if actor.node is None and actor.error is None:
            return False
        for asker, number in actor.waiters:
            actor.watchers[asker] = None
            self._context.send(self._conn(asker), self._at(number, actor_id, actor))
        actor.waiters.clear()
        self._wanted.pop(actor_id, None)
        return True

    def _at(self, number: int, actor_id: bytes, actor: _Actor) -> ActorAt:
        node_id = actor.node[0] if actor.node else 0
        alive = actor.error is None
        return ActorAt(number, actor_id, node_id, alive, actor.error)

    # news

    def here(self, node: Node, message: ActorHere) -> None:
        """An actor runs on this node, or died there."""
        actor = self._actors.get(message.actor_id)
        if message.alive:
            if actor is None:
                actor = self._actors[message.actor_id] = _Actor()
            actor.job, actor.node, actor.error = message.job, node.key, None
            self._dead.pop(message.actor_id, None)
            self._restarts.back(message.actor_id)
            self._tell_waiters(message.actor_id, actor)
        elif actor is None or actor.node in (None, node.key):
            if message.error is None:
                self._process_died(node, message)
            else:
                self.died(message.actor_id, message.job, message.error)

    def _process_died(self, node: Node, message: ActorHere) -> None:
        """It restarts, on its node if that can be, unless the log says that it may not."""
        actor = self._actors.setdefault(message.actor_id, _Actor())
        actor.job, actor.node = message.job or actor.job, None
        actor.watchers[node.key] = None
        self._restarts.back(message.actor_id)  # what was begun is void
        self._restarts.lost([RestartingActor(message.actor_id, message.job, node.key)])

    def died(self, actor_id: bytes, job: int, error: SystemFailure) -> None:
        """For good."""
        actor = self._actors.setdefault(actor_id, _Actor())
        actor.job, actor.error = job or actor.job, error
        self._tell_waiters(actor_id, actor)
        at = self._at(0, actor_id, actor)
        for watcher in actor.watchers:
            self._context.send(self._conn(watcher), at)
        actor.watchers.clear()
        self._bury(actor_id)

    def _bury(self, actor_id: bytes) -> None:
        self._dead[actor_id] = None
        while len(self._dead) > DEAD_REMEMBERED:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            del self._actors[oldest]

    def node_died(self, node: Node, reason: str, actors: list[tuple[bytes, int]]) -> None:
        """``actors``: those that, by Postgres, lived there: (actor id, job)."""
        text = f"the actor died with node {node.node_id}: {reason}"
        for actor_id, job in actors:
            actor = self._actors.get(actor_id)
            if actor is None or actor.node in (None, node.key):
                self.died(actor_id, job, SystemFailure("actor_died", text))
        for actor_id, actor in list(self._actors.items()):
            if actor.node == node.key and actor.error is None:
                actor.node = None  # its creation was not committed: it begins anew elsewhere
            actor.watchers.pop(node.key, None)
            actor.waiters = [waiter for waiter in actor.waiters if waiter[0] != node.key]
            if not actor.waiters:
                self._wanted.pop(actor_id, None)

    def job_closed(self, job: int) -> None:
        """Its actors are dead; nobody will ask."""
        ended = [actor_id for actor_id, actor in self._actors.items() if actor.job == job]
        error = SystemFailure("actor_died", f"the actor ended with its job {job}")
        for actor_id in ended:
            if self._actors[actor_id].error is None:
                self.died(actor_id, job, error)
        for actor_id in ended:
            if self._actors.pop(actor_id, None) is not None:
                self._dead.pop(actor_id, None)
                self._wanted.pop(actor_id, None)

    def tick(self) -> None:
        now = self._context.now
        for actor_id in self._wanted:
            actor = self._actors[actor_id]
            if not actor.reading and actor.retry_at <= now:
                self._read(actor_id, actor)

    @property
    def busy(self) -> bool:
        return bool(self._wanted)

    def _conn(self, asker: _Asker) -> int:
        return self._members.nodes[asker[0]].conn if self._members.is_alive(*asker) else 0

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for actor_id in self._wanted:
            assert self._actors[actor_id].waiters
        for actor_id, actor in self._actors.items():
            assert (actor.error is not None) == (actor_id in self._dead)
            assert not actor.waiters or actor_id in self._wanted
            if actor.node is not None and actor.error is None:
                assert self._members.is_alive(*actor.node)
