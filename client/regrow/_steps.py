"""Steps in a database of the program: what a table there records of them, in their transactions.

Decides whether a step is run or answered from its record, and commits both together.  The row comes
first: whoever else is at the same step waits at its key until the one who has it has committed or
given up.  Knows no task and no cluster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from regrow.exceptions import RaySystemError

#: As the documents show it to whoever may not let programs create tables.
_CREATE: Final = """CREATE TABLE IF NOT EXISTS {} (
    step text PRIMARY KEY,
    name text NOT NULL,
    outcome bytea,
    at timestamptz NOT NULL DEFAULT now()
)"""
_CLAIM: Final = (
    "INSERT INTO {} (step, name) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING txid_current()"
)
_COMPLETE: Final = "UPDATE {} SET outcome = %s WHERE step = %s AND txid_current() = %s"
_READ: Final = "SELECT outcome FROM {} WHERE step = %s"
#: Several that create the table at once wait for each other; alone, IF NOT EXISTS does not do it.
_CREATION_LOCK: Final = 0x7265_6772_6F77  # "regrow"
#: Snapshots that are older than the row they meet (REPEATABLE READ) are taken anew.
_CLAIMS_MAX: Final = 10

if TYPE_CHECKING:
    import sqlalchemy

Connection = psycopg.Connection[Any]


class Step:
    """One step of a program, in the transaction of ``connection`` from ``claim`` on.

    ``table`` may name its schema. Raises RuntimeError where the connection has a transaction.
    """

    def __init__(self, connection: Connection, table: str, step: str, name: str) -> None:
        if connection.info.transaction_status != TransactionStatus.IDLE:
            raise RuntimeError(
                "the connection is in a transaction already, which would not end with the step: "
                "commit it first, or give regrow.transaction() a URL"
            )
        self.connection = connection
        self._table = table
        self._step = step
        self._name = name
        self._block: AbstractContextManager[object] | None = None
        self._xid = 0

    def claim(self) -> bytes | None:
        """Begin, and take the step; waits for another who has it. The outcome, and no transaction,
        if it is recorded."""
        self._create_table()
        for _ in range(_CLAIMS_MAX):
            block = self.connection.transaction()
            block.__enter__()
            try:
                row = self._execute(_CLAIM, [self._step, self._name])
            except errors.SerializationFailure as error:
                block.__exit__(type(error), error, error.__traceback__)
                continue
            except BaseException as error:
                block.__exit__(type(error), error, error.__traceback__)
                raise
            if row is not None:
                self._block, self._xid = block, row[0]
                return None
            found = self._execute(_READ, [self._step])
            block.__exit__(None, None, None)
            if found is not None:
                return self._checked(found[0])
        raise RaySystemError(
            f"step {self._step} in {self._table} could neither be begun nor found in {_CLAIMS_MAX} "
            f"attempts: something deletes its row again and again"
        )

    def complete(self, outcome: bytes) -> None:
        """Record the outcome and commit. If the connection is lost meanwhile, whether that has
        happened is looked up over another one."""
        assert self._block is not None, "a step that was not claimed"
        row = self._execute(_COMPLETE + " RETURNING 1", [outcome, self._step, self._xid])
        if row is None:
            raise RuntimeError(
                "the SQL of the step ended the step's transaction (COMMIT or ROLLBACK); what it "
                "committed is not undone. Leave the end to regrow.transaction()"
            )
        block, self._block = self._block, None
        try:
            block.__exit__(None, None, None)
        except psycopg.OperationalError:
            if not self.connection.broken or not self._is_committed():
                raise

    def abandon(self, error: BaseException) -> None:
        """Roll back, record and all; the caller raises ``error``."""
        block, self._block = self._block, None
        if block is None:
            return
        try:
            with contextlib.suppress(psycopg.Rollback):
                block.__exit__(type(error), error, error.__traceback__)
        except psycopg.Error:  # where the connection is lost, the server has rolled back
            if not self.connection.closed:
                raise

    # --- the table --------------------------------------------------------------------------------

    def _execute(self, text: str, parameters: list[Any]) -> tuple[Any, ...] | None:
        """The first row as a tuple, whatever the connection makes of rows."""
        with psycopg.Cursor(self.connection, row_factory=tuple_row) as cursor:
            cursor.execute(sql.SQL(text).format(self._identifier()), parameters)
            return cursor.fetchone()

    def _identifier(self) -> sql.Identifier:
        return sql.Identifier(*self._table.split("."))

    def _create_table(self) -> None:
        """In a transaction of its own: nobody waits for the step on its account."""
        name = self._identifier().as_string(self.connection)
        cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
        with cursor, self.connection.transaction():
            known = cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone()
            if known is not None and not known[0]:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_CREATION_LOCK])
                cursor.execute(sql.SQL(_CREATE).format(self._identifier()))

    def _checked(self, outcome: bytes | None) -> bytes:
        if outcome is None:
            raise RuntimeError(
                f"step {self._step} in {self._table} has no outcome: its SQL ended the transaction "
                f"(COMMIT) before regrow did. What it has done is not known; look at the data, and "
                f"delete the row to let the step run again"
            )
        return outcome

    def _is_committed(self) -> bool:
        """Whether the row is there; waits while the server is still at the commit."""
        info = self.connection.info
        with psycopg.connect(info.dsn, password=info.password or None) as again:
            other = Step(again, self._table, self._step, self._name)
            if other.claim() is not None:
                return True
            other.abandon(psycopg.Rollback())
            return False


def opened(target: object) -> tuple[Connection, Callable[[], None]]:
    """The connection to use, and what to do with it in the end.

    Raises TypeError for what is no connection or URL of Postgres.
    """
    if isinstance(target, psycopg.Connection):
        return target, _leave_open
    if is_sqlalchemy(target):
        from regrow._recorded_sqlalchemy import driver_connection, leave_transaction

        return driver_connection(target), partial(leave_transaction, target)
    render = getattr(target, "render_as_string", None)  # a URL object of SQLAlchemy's
    url = render(hide_password=False) if render is not None else target
    if not isinstance(url, str):
        raise TypeError(
            f"regrow.transaction() takes a URL (postgresql://...), or a connection of psycopg or "
            f"SQLAlchemy, not a {type(target).__name__}"
        )
    scheme, separator, rest = url.partition("://")
    if separator:
        if scheme.partition("+")[0] not in ("postgresql", "postgres"):
            raise TypeError(f"regrow.transaction() needs Postgres, not {scheme}")
        url = f"postgresql://{rest}"
    connection = psycopg.connect(url)
    return connection, connection.close


def is_sqlalchemy(target: object) -> TypeGuard[sqlalchemy.Connection]:
    """Whether it is a connection of SQLAlchemy's, which is not imported to find out."""
    return hasattr(target, "exec_driver_sql")


def _leave_open() -> None:
    """It is the program's."""
