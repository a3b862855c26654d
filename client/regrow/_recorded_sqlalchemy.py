"""SQLAlchemy's connection in a step: as ``regrow._recorded``, for statements and results of its
kind. Only imported for a program that uses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import psycopg
import sqlalchemy
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from regrow._recorded import Answer, Statements, refuse


def driver_connection(connection: sqlalchemy.Connection) -> psycopg.Connection[Any]:
    """What lies beneath. Raises TypeError if it is not psycopg's, RuntimeError in a transaction."""
    if connection.get_transaction() is not None:
        raise RuntimeError(
            "the connection is in a transaction already, which would not end with the step: "
            "commit it first"
        )
    found = connection.connection.driver_connection
    if not isinstance(found, psycopg.Connection):
        raise TypeError(
            f"regrow.transaction() needs SQLAlchemy's driver psycopg (postgresql+psycopg://), this "
            f"connection has {connection.dialect.driver}"
        )
    return found


def leave_transaction(connection: sqlalchemy.Connection) -> None:
    """The step has ended the transaction; SQLAlchemy's own, which is none of the server's, goes
    too."""
    if not connection.closed:
        connection.rollback()


class AlchemyResult(IteratorResult[Any]):
    """Rows, and how many a statement changed."""

    def __init__(self, told: Answer) -> None:
        keys, rows = told.description or [], told.rows or deque()
        super().__init__(SimpleResultMetaData(keys), iter([tuple(row) for row in rows]))
        self.rowcount = told.rowcount


class AlchemyConnection:
    """The connection of a step: SQLAlchemy's, as far as it can be recorded."""

    def __init__(self, statements: Statements, connection: sqlalchemy.Connection) -> None:
        self._statements = statements
        self._connection = connection

    def execute(
        self, statement: sqlalchemy.Executable, parameters: Any = None, **options: Any
    ) -> AlchemyResult:
        """Run a statement; see SQLAlchemy."""
        run = self._connection.execute
        return self._answer(str(statement), lambda: run(statement, parameters, **options))

    def exec_driver_sql(self, statement: str, parameters: Any = None) -> AlchemyResult:
        """Run SQL in the driver's own form."""
        run = self._connection.exec_driver_sql
        return self._answer(statement, lambda: run(statement, parameters))

    def scalar(self, statement: sqlalchemy.Executable, parameters: Any = None) -> Any:
        """The first column of the first row."""
        return self.execute(statement, parameters).scalar()

    def scalars(
        self, statement: sqlalchemy.Executable, parameters: Any = None
    ) -> sqlalchemy.ScalarResult[Any]:
        """The first column of all rows."""
        return self.execute(statement, parameters).scalars()

    def begin_nested(self) -> AbstractContextManager[object]:
        """A savepoint within the step."""
        return self._statements.savepoint(None)

    def _answer(self, text: str, run: Callable[[], sqlalchemy.CursorResult[Any]]) -> AlchemyResult:
        def answer(_: psycopg.Connection[Any]) -> Answer:
            result = run()
            if not result.returns_rows:
                return Answer(text, None, result.rowcount)
            rows = deque(tuple(row) for row in result)
            return Answer(text, rows, result.rowcount, None, list(result.keys()))

        return AlchemyResult(self._statements.answer(text, answer))

    def __getattr__(self, name: str) -> NoReturn:
        refuse(name)
