"""``transaction`` and ``idempotency_key``: effects outside of the cluster that happen once.

A task may run more than once; its step in a database of the program's own commits once.  Decides
which step a transaction is, and that nothing leaves through it before all that it may depend on is
in the log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    TypeVar,
    cast,
    overload,
)

import cloudpickle

from regrow import _client
from regrow._context import Task
from regrow._recorded import RECORD_MAX, Recording, Replaying, StepConnection
from regrow._steps import Connection, Step, is_sqlalchemy, opened
from regrow.exceptions import ReplayMismatchError
from regrow.objectstore import pickling

if TYPE_CHECKING:
    import sqlalchemy

    from regrow._recorded_sqlalchemy import AlchemyConnection

P = ParamSpec("P")
R = TypeVar("R")
#: What ``run`` gives to its function, and what ``with`` gives to its body.
C = TypeVar("C")
S = TypeVar("S")

_RUN: Final = "run"
_WITH: Final = "with"


class Transaction(Generic[C, S]):
    """One transaction, once. Its number in the task is that of its making, not of its beginning."""

    def __init__(self, target: object, key: str | None, table: str) -> None:
        self._target = target
        self._table = table
        self._client = _client.connected()
        task = _task(self._client)
        self._step, self._name = _name(task, key), "" if task is None else task.name
        self._begun = threading.Lock()
        self._open: Step | None = None
        self._close: Callable[[], None] | None = None
        self._statements: Recording | Replaying | None = None

    # --- with -------------------------------------------------------------------------------------

    def __enter__(self) -> S:
        recorded = self._begin()
        if recorded is None:
            assert self._open is not None
            self._statements = Recording(self._open.connection)
        else:
            self._finish()
            self._statements = Replaying(self._of_kind(_WITH, recorded), self._step)
        if is_sqlalchemy(self._target):
            from regrow._recorded_sqlalchemy import AlchemyConnection

            return cast(S, AlchemyConnection(self._statements, self._target))
        return cast(S, StepConnection(self._statements))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        statements, self._statements = self._statements, None
        if isinstance(statements, Replaying):
            if error is None:
                statements.finish()
        elif error is not None:
            self._abandon(error)
        else:
            assert statements is not None
            self._complete(_WITH, lambda: statements.record)

    # --- run --------------------------------------------------------------------------------------

    def run(
        self, function: Callable[Concatenate[C, P], R], /,
        *args: P.args, **kwargs: P.kwargs,
    ) -> R:  # fmt: skip
        """What ``function(connection, ...)`` returned when it was committed; calls it, in the
        transaction, only if it was not."""
        recorded = self._begin()
        if recorded is not None:
            self._finish()
            return cast(R, self._of_kind(_RUN, recorded))
        assert self._open is not None
        try:
            handed = self._target if is_sqlalchemy(self._target) else self._open.connection
            result = function(cast(C, handed), *args, **kwargs)
        except BaseException as error:
            self._abandon(error)
            raise
        self._complete(_RUN, lambda: result)
        return result

    # --- the step ---------------------------------------------------------------------------------

    def _begin(self) -> bytes | None:
        """The outcome, if there is one; else the step is open."""
        if not self._begun.acquire(blocking=False):
            raise RuntimeError("a regrow.transaction() is one transaction: make one for each")
        connection, self._close = opened(self._target)
        try:
            self._open = Step(connection, self._table, self._step, self._name)
            return self._open.claim()
        except BaseException:
            self._finish()
            raise

    def _complete(self, kind: str, outcome: Callable[[], object]) -> None:
        assert self._open is not None
        try:
            data = pickling.dumps((kind, outcome()))
            if len(data) > RECORD_MAX:
                raise ValueError(
                    f"the record of step {self._step} would have {len(data)} bytes, more than "
                    f"{RECORD_MAX}: select less, or put what is read into a task of its own"
                )
            if self._client is not None:
                self._client.await_commits()
            self._open.complete(data)
        except BaseException as error:
            self._abandon(error)
            raise
        self._finish()

    def _abandon(self, error: BaseException) -> None:
        assert self._open is not None
        try:
            self._open.abandon(error)
        finally:
            self._finish()

    def _finish(self) -> None:
        self._open = None
        close, self._close = self._close, None
        if close is not None:
            close()

    def _of_kind(self, expected: str, data: bytes) -> Any:
        kind, outcome = cloudpickle.loads(data)
        if kind != expected:
            raise ReplayMismatchError(
                f"step {self._step} was committed as transaction(...) with {kind!r}, and is now "
                f"run with {expected!r}: the code has changed since"
            )
        return outcome


@overload
def transaction(
    target: str | sqlalchemy.URL | Connection, *, key: str | None = None, table: str = ...
) -> Transaction[Connection, StepConnection]: ...
@overload
def transaction(
    target: sqlalchemy.Connection, *, key: str | None = None, table: str = ...
) -> Transaction[sqlalchemy.Connection, AlchemyConnection]: ...
def transaction(
    target: Any, *, key: str | None = None, table: str = "regrow_steps"
) -> Transaction[Any, Any]:
    """SQL in a database of the program's own that takes effect once, however often its task runs.

        with regrow.transaction(url) as connection:
            connection.execute("UPDATE accounts SET balance = balance - 10 WHERE id = 7")

        regrow.transaction(url).run(function, argument)  # calls function(connection, argument)

    ``target`` is a URL (``postgresql://...``), or an idle connection of psycopg or SQLAlchemy, that
    the body or function is given.  The transaction also writes a row into ``table`` there, which is
    created if it is missing.  When the task runs again, the statements of a ``with`` are answered
    from that row, and ``run`` returns what the function returned.  ``key`` names the transaction
    within its task; without one, the task's transactions are numbered.  A driver of an unnamed job
    is never run again as the same job, so that it has to give a ``key``, which holds in the whole
    table.

    Raises what the database and the body raise, after rolling both back; ReplayMismatchError where
    the code that runs again is other than the one that was committed.
    """
    return Transaction(target, key, table)


def idempotency_key(name: str = "") -> str:
    """A key for a service that takes a request once: the same in every attempt of this task.

    ``name`` tells several requests of a task apart.  Returns when everything that the task can
    depend on is in the log, so that no request is made that the log could forget.
    """
    client = _client.connected()
    task = _task(client)
    if client is None or task is None:
        raise RuntimeError(
            "regrow.idempotency_key() belongs into a task: a driver that is run again is another "
            "job, unless the job has a name (init(job=...))"
        )
    client.await_commits()
    return f"{task.task_id.hex()}-{name}" if name else task.task_id.hex()


def _task(client: _client.Client | None) -> Task | None:
    """The task of the calling code, if it is one that comes back as the same."""
    if client is None:
        return None
    task = client.running.current()
    return None if client.role == "driver" and task.counted_ids is not None else task


def _name(task: Task | None, key: str | None) -> str:
    if task is not None:
        return f"{task.task_id.hex()}/{next(task.steps) if key is None else 'key/' + key}"
    if key is None:
        raise RuntimeError(
            "regrow.transaction() outside of a task needs a key, under which it is recorded once "
            "and for all: transaction(url, key='import 2024-05'). In a task, or in the driver of a "
            "named job (init(job=...)), it needs none"
        )
    return f"key/{key}"
