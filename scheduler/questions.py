"""What clients ask of their node: the cluster's nodes and resources, actors' names, killing.

Answers from what the node knows, or passes the question on to the control store.  An answer that
names an actor that others were told of is no output: the actor's own commit is.  But what a client
here knows of an actor's end holds for its name, too, however late that end comes to be in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from regrow.messages import (
    Answer,
    Ask,
    AskStore,
    FindActor,
    NameActor,
    NamedActor,
    Reply,
    Resources,
    SystemFailure,
    ToStore,
    encode,
)
from regrow.scheduler import events

if TYPE_CHECKING:
    from regrow.scheduler.core import Core


class Questions:
    """See the module."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._number = 0
        #: Our number -> the client, its number, and the question as passed on.
        self._open: dict[int, tuple[int, int, ToStore]] = {}
        #: Questions for names that actors have which are about to end.
        self._postponed: list[int] = []

    def ask(self, client: int, ask: Ask) -> None:
        """Answers, or passes on."""
        core = self._core
        match ask.what:
            case "nodes":
                self._answer(client, ask.number, list(core.nodes.values()))
            case "cluster_resources":
                self._answer(client, ask.number, self._sum("total"))
            case "available_resources":
                self._answer(client, ask.number, self._sum("available"))
            case "node_stats":
                self._answer(client, ask.number, self._stats())
            case "commits":  # answered once all that was logged so far is committed
                answer = events.ToClient(client, Answer(ask.number, b""))
                if not core.journal.hold(answer):
                    core.emit(answer)
            case "store_put":
                core.transport.puts.wait_for(client, ask.number, ask.body)
            case "kill_actor":
                actor_id, no_restart = msgspec.msgpack.decode(ask.body)
                core.actors.kill(actor_id, no_restart)
                self._answer(client, ask.number, None)
            case "name_actor":
                named: tuple[bytes, str, str, bytes, bytes] = msgspec.msgpack.decode(
                    ask.body, type=tuple[bytes, str, str, bytes, bytes]
                )
                actor_id, name, namespace, function_id, methods = named
                driver = core.drivers.get(client)
                job = driver.job if driver is not None else self._job_of_worker(client)
                number = self._pass_on(client, ask.number)
                self._send(
                    number, NameActor(number, actor_id, name, namespace, job, function_id, methods)
                )
            case "get_actor":
                name, namespace = msgspec.msgpack.decode(ask.body)
                number = self._pass_on(client, ask.number)
                self._send(number, FindActor(number, b"", name, namespace))
            case _:
                number = self._pass_on(client, ask.number)
                self._send(number, AskStore(number, ask.what, ask.body))

    def replied(self, reply: Reply) -> None:
        """The control store answered."""
        waiting = self._open.get(reply.number)
        if waiting is None:
            return
        client, number, message = waiting
        error, is_ending = reply.error, self._core.actors.is_ending
        if isinstance(message, NameActor) and error is not None and is_ending(reply.body):
            self._postponed.append(reply.number)
            return
        if isinstance(message, FindActor) and error is None:
            found = msgspec.msgpack.decode(reply.body, type=NamedActor)
            if is_ending(found.actor_id):
                text = f"the actor {message.name!r} was killed, or has ended"
                error = SystemFailure("actor_not_found", text)
        del self._open[reply.number]
        self._core.send_client(client, Answer(number, reply.body, error))

    def tick(self) -> None:
        """Names may be free now."""
        postponed, self._postponed = self._postponed, []
        for number in postponed:
            if number in self._open:
                self._core.send_store_held(self._open[number][2])

    def ask_again(self) -> None:
        """The control store may have forgotten the questions."""
        for _, _, message in self._open.values():
            self._core.send_store(message)

    def _job_of_worker(self, client: int) -> int:
        worker = self._core.pool.by_client.get(client)
        if worker is None:
            return 0
        if worker.actor is not None:
            return worker.actor.job
        task = next(iter(worker.in_flight.values()), None)
        return task.header.job if task is not None else 0

    def _pass_on(self, client: int, number: int) -> int:
        self._number += 1
        self._open[self._number] = (client, number, AskStore(self._number, ""))
        return self._number

    def _send(self, number: int, message: ToStore) -> None:
        client, asked, _ = self._open[number]
        self._open[number] = (client, asked, message)
        # Behind the ends of actors that are being logged.
        self._core.send_store_held(message)

    def _answer(
        self, client: int, number: int, answer: object, error: SystemFailure | None = None
    ) -> None:
        self._core.send_client(client, Answer(number, encode(answer), error))

    def _stats(self) -> dict[str, int]:
        """What this node holds, in bytes and counts: for programs that watch for leaks."""
        core = self._core
        store = core.transport.store.stats()
        return {
            "arena_capacity": store.capacity,
            "arena_used": store.used,
            "spill_used": store.spill_used,
            "copies": store.objects,
            "pinned": store.pinned,
            "objects": len(core.objects.entries),
            "tasks": len(core.tasks.tasks),
            "actors": len(core.actors.table),
            "workers": len(core.pool.workers),
            "claimed": core.ledger.claimed,
        }

    def _sum(self, which: str) -> Resources:
        core = self._core
        total: Resources = {}
        for node in core.nodes_alive():
            amounts: Resources = getattr(node, which)
            if node.node_id == core.node_id:
                amounts = core.ledger.total if which == "total" else core.ledger.available
            for name, amount in amounts.items():
                total[name] = total.get(name, 0) + amount
        return total
