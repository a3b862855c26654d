"""What nodes look up: tasks, functions, and general questions.

Part of the control store's core: no I/O, no clock. Reads only; a pending task whose holder is dead
is answered once it has another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import (
    FunctionRows,
    ReadFunctions,
    ReadJobCode,
    ReadTasks,
    TaskRows,
)
from regrow.messages import (
    PENDING,
    AskStore,
    DrainNode,
    FetchFunctions,
    Functions,
    JobCode,
    LookUpTasks,
    SystemFailure,
    TaskStates,
    encode,
)
from regrow.messages import Reply as Answer

_drain_decoder: Final = msgspec.msgpack.Decoder(DrainNode)


class _LookUp(Struct):
    asker: tuple[int, int]
    message: LookUpTasks


class _Tasks(Continuation):
    lookup: _LookUp


class _Functions(Continuation):
    asker: tuple[int, int]


class _Code(Continuation):
    asker: tuple[int, int]
    number: int


class Inquiries:
    """Set by the core: ``sweep`` when a task's holder turns out to be dead."""

    def __init__(self, context: Context, members: Membership) -> None:
        self._context = context
        self._members = members
        #: For a sweep.
        self._waiting: list[_LookUp] = []
        self.sweep: Callable[[], None]
        context.on(_Tasks, self._tasks_read)
        context.on(_Functions, self._functions_read)
        context.on(_Code, self._code_read)

    def look_up_tasks(self, node: Node, message: LookUpTasks) -> None:
        self._read(_LookUp(node.key, message))

    def _read(self, lookup: _LookUp) -> None:
        self._context.execute(
            ReadTasks(lookup.message.task_ids, lookup.message.keyed), _Tasks(lookup)
        )

    def _tasks_read(self, then: _Tasks, reply: Reply) -> None:
        rows: TaskRows = reply.result
        nodes = self._members.nodes
        if any(t.known and t.status == PENDING and t.holder not in nodes for t in rows.tasks):
            self._waiting.append(then.lookup)
            self.sweep()
            return
        conn = self._conn_of(then.lookup.asker)
        self._context.send(conn, TaskStates(then.lookup.message.number, rows.tasks))

    def swept(self) -> None:
        waiting, self._waiting = self._waiting, []
        for lookup in waiting:
            if self._members.is_alive(*lookup.asker):
                self._read(lookup)

    def fetch_functions(self, node: Node, message: FetchFunctions) -> None:
        self._context.execute(ReadFunctions(message.function_ids), _Functions(node.key))

    def _functions_read(self, then: _Functions, reply: Reply) -> None:
        rows: FunctionRows = reply.result
        self._context.send(self._conn_of(then.asker), Functions(rows.functions))

    def ask(self, node: Node, message: AskStore) -> None:
        """``nodes``: the list of ``NodeView``; ``drain``: whether that node was asked to go;
        ``job_code``: a ``JobCode``."""
        if message.what == "job_code":
            job = msgspec.msgpack.decode(message.body, type=int)
            self._context.execute(ReadJobCode(job), _Code(node.key, message.number))
            return
        if message.what == "nodes":
            answer = Answer(message.number, encode(self._members.views()))
        elif message.what == "drain":
            order = _drain_decoder.decode(message.body)
            asked = self._members.drain(order.node_id, order.deadline_s, order.reason)
            answer = Answer(message.number, encode(asked))
        else:
            text = f"the control store cannot answer the question {message.what!r}"
            answer = Answer(message.number, b"", SystemFailure("control_store", text))
        self._context.send(node.conn, answer)

    def _code_read(self, then: _Code, reply: Reply) -> None:
        code: JobCode = reply.result
        self._context.send(self._conn_of(then.asker), Answer(then.number, encode(code)))

    def _conn_of(self, asker: tuple[int, int]) -> int:
        """The asker's session; 0 if it has none, or is dead."""
        return self._members.nodes[asker[0]].conn if self._members.is_alive(*asker) else 0
