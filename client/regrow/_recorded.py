"""A connection whose statements are recorded when they first run, and answered from the record when
the code around them runs again.

Decides what a statement is told: its own rows, row count and error, or those of before.  A replayed
statement never reaches the database.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NoReturn, Protocol, Self

import msgspec
import psycopg
from msgspec import Struct

from regrow.exceptions import ReplayMismatchError

#: Rows that one step records (bytes, as its table keeps them).
RECORD_MAX: Final = 64 << 20


class Answer(Struct):
    """What a statement is told."""

    text: str
    rows: deque[Any] | None = None
    rowcount: int = -1
    status: str | None = None
    description: list[Any] | None = None
    error: BaseException | None = None

    def copied(self) -> Answer:
        """For a cursor to consume."""
        rows = None if self.rows is None else self.rows.copy()
        return Answer(self.text, rows, self.rowcount, self.status, self.description)


class Statements(Protocol):
    """Where a cursor's answers come from."""

    def answer(self, text: str, run: Callable[[psycopg.Connection[Any]], Answer]) -> Answer: ...

    def savepoint(self, name: str | None) -> AbstractContextManager[object]: ...


class Recording:
    """Statements are run, and what they are told is kept."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._record: list[Answer] = []

    @property
    def record(self) -> list[tuple[Any, ...]]:
        """What ``Replaying`` needs, as plain tuples."""
        return [msgspec.structs.astuple(told) for told in self._record]

    def answer(self, text: str, run: Callable[[psycopg.Connection[Any]], Answer]) -> Answer:
        try:
            told = run(self._connection)
        except Exception as error:  # a program may go on from it, behind a savepoint
            self._record.append(Answer(text, error=error))
            raise
        self._record.append(told)
        return told.copied()

    def savepoint(self, name: str | None) -> AbstractContextManager[object]:
        return self._connection.transaction(name)


class Replaying:
    """Statements are told what they were told before."""

    def __init__(self, record: list[tuple[Any, ...]], step: str) -> None:
        self._record = [Answer(*told) for told in record]
        self._step = step
        self._next = 0

    def answer(self, text: str, run: Callable[[psycopg.Connection[Any]], Answer]) -> Answer:
        if self._next == len(self._record):
            raise self._mismatch("no other statement", text)
        told = self._record[self._next]
        if told.text != text:
            raise self._mismatch(repr(told.text), text)
        self._next += 1
        if told.error is not None:
            raise told.error
        return told.copied()

    def savepoint(self, name: str | None) -> AbstractContextManager[object]:
        return contextlib.suppress(psycopg.Rollback)

    def finish(self) -> None:
        """The code is through. Raises ReplayMismatchError if it left statements out."""
        if self._next < len(self._record):
            raise self._mismatch(repr(self._record[self._next].text), "nothing")

    def _mismatch(self, before: str, now: str) -> ReplayMismatchError:
        return ReplayMismatchError(
            f"step {self._step} was committed before, and is now run with other statements: number "
            f"{self._next + 1} was {before}, and is {now!r}. Nothing was sent to the database. The "
            f"body of regrow.transaction() must be deterministic; what is not, goes into a task of "
            f"its own"
        )


class StepCursor:
    """As psycopg's cursor, with what can be recorded of it."""

    def __init__(self, statements: Statements, row_factory: Any = None) -> None:
        self._statements = statements
        self._row_factory = row_factory
        self._told = Answer("")

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Run a statement; see psycopg."""

        def run(connection: psycopg.Connection[Any]) -> Answer:
            with self._cursor(connection) as cursor:
                cursor.execute(query, params, **options)
                return _answer(cursor, _text(query))

        self._told = self._statements.answer(_text(query), run)
        return self

    def executemany(
        self, query: Any, params_seq: Iterable[Any], *, returning: bool = False
    ) -> None:
        """Run a statement with each of the parameters; see psycopg."""
        if returning:
            refuse("executemany(returning=True)")

        def run(connection: psycopg.Connection[Any]) -> Answer:
            with self._cursor(connection) as cursor:
                cursor.executemany(query, params_seq)
                return _answer(cursor, _text(query))

        self._told = self._statements.answer(_text(query), run)

    def _cursor(self, connection: psycopg.Connection[Any]) -> psycopg.Cursor[Any]:
        if self._row_factory is None:
            return connection.cursor()
        return connection.cursor(row_factory=self._row_factory)

    # --- the answer -------------------------------------------------------------------------------

    @property
    def _rows(self) -> deque[Any]:
        rows = self._told.rows
        if rows is None:
            raise psycopg.ProgrammingError("the last operation didn't produce a result")
        return rows

    def fetchone(self) -> Any:
        """The next row; None after the last."""
        rows = self._rows
        return rows.popleft() if rows else None

    def fetchmany(self, size: int = 1) -> list[Any]:
        """The next rows."""
        rows = self._rows
        return [rows.popleft() for _ in range(min(size, len(rows)))]

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        rows = self._rows
        taken = list(rows)
        rows.clear()
        return taken

    def __iter__(self) -> Iterator[Any]:
        rows = self._rows
        while rows:
            yield rows.popleft()

    @property
    def rowcount(self) -> int:
        """Rows that the statement returned or changed."""
        return self._told.rowcount

    @property
    def statusmessage(self) -> str | None:
        """Such as ``INSERT 0 1``."""
        return self._told.status

    @property
    def description(self) -> Sequence[Any] | None:
        """The columns; None without rows."""
        return self._told.description

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> NoReturn:
        refuse(name)


class StepConnection:
    """The connection of a step: psycopg's, as far as it can be recorded."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    def execute(self, query: Any, params: Any = None, **options: Any) -> StepCursor:
        """Run a statement on a new cursor."""
        return self.cursor().execute(query, params, **options)

    def cursor(self, *, row_factory: Any = None) -> StepCursor:
        """A cursor on the client's side."""
        return StepCursor(self._statements, row_factory)

    def transaction(self, savepoint_name: str | None = None) -> AbstractContextManager[object]:
        """A savepoint within the step."""
        return self._statements.savepoint(savepoint_name)

    def __getattr__(self, name: str) -> NoReturn:
        refuse(name)


def refuse(name: str) -> NoReturn:
    """Of a connection or cursor, what a step does not have."""
    if name in ("begin", "commit", "rollback", "close"):
        raise AttributeError(
            f"{name}() is not the body's to call: the step commits at its end, and an exception "
            f"rolls it back"
        )
    raise AttributeError(
        f"{name} cannot be recorded. regrow.transaction(...).run(function) gives the function the "
        f"connection itself, and skips it as a whole when it has been committed"
    )


def _answer(cursor: psycopg.Cursor[Any], text: str) -> Answer:
    columns = cursor.description
    return Answer(
        text,
        None if columns is None else deque(cursor.fetchall()),
        cursor.rowcount,
        cursor.statusmessage,
        None if columns is None else list(columns),
    )


def _text(query: Any) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query if isinstance(query, str) else repr(query)
