"""The node's side of the log: one pipelined connection that calls ``regrow.append``.

Decides nothing: it sends what it is given and says what Postgres answered, in order.  The
caller's event loop drives it (``fileno``, ``flush``, ``receive``); only ``connect`` blocks.  Each
batch is one statement and one Sync, so one transaction.  Whatever is not an answer of the log
protocol (a broken connection, a deadlock, a full disk) is ``LogConnectionLost``: the caller
connects anew and sends all unanswered batches again, which is safe because they are numbered.

It must not import SQLAlchemy, which takes long, and never block once connected.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from regrow.gcs.log_records import PARAMETERS, encode_append
from regrow.gcs.operations import APPLIED, BEHIND, CONFLICT, FENCED, Append, AppendResult
from regrow.gcs.postgres_url import (
    Connection,
    PostgresUnavailableError,
    connect_checked,
    libpq_url,
)

__all__ = ["LogConnection", "LogConnectionLost", "encode_append"]

#: Raised by regrow.append for a batch that contradicts the log.
CONFLICT_SQLSTATE: Final = "RG001"
ROLE: Final = "regrow_append"

_STATEMENT: Final = b"append"
_ARGUMENTS: Final = ", ".join(f"${n}::{kind}" for n, (_, kind) in enumerate(PARAMETERS, 1))
_APPEND: Final = f"SELECT regrow.append({_ARGUMENTS})".encode()
_BINARY: Final = [pq.Format.BINARY] * len(PARAMETERS)
_ANSWERS: Final = {verdict.encode(): AppendResult(verdict) for verdict in (APPLIED, FENCED, BEHIND)}
_AFTER_CONFLICT: Final = "an earlier batch was rejected"

#: A host that vanished is noticed within about ten seconds.
_KEEPALIVE: Final = {
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

#: A commit must be one, and each statement of regrow.append must see what was committed before it.
_SESSION: Final = """
SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off';
SELECT set_config('default_transaction_isolation', 'read committed', false),
    set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),
    set_config('application_name', 'regrow-node', false);
SELECT set_config('role', 'regrow_append', false) FROM pg_roles
    WHERE rolname = 'regrow_append' AND pg_has_role(current_user, oid, 'MEMBER');
"""


class LogConnectionLost(Exception):
    """The connection to Postgres broke or could not be made, or a batch was refused: which batches
    are in is unknown. ``sqlstate``: Postgres's word for why, if it said one."""

    def __init__(self, reason: str, sqlstate: str = "") -> None:
        super().__init__(reason)
        self.sqlstate = sqlstate


class LogConnection:
    """See the module. After a ``LogConnectionLost`` only ``close`` may be called."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        #: Kept: libpq forgets it when the server closes the connection, those who watch it do not.
        self._fileno = self._pgconn.socket
        #: Numbers of the batches that are not answered yet, oldest first.
        self._sent: deque[int] = deque()
        self._answer: AppendResult | None = None
        self._conflict = False
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()

    @classmethod
    def connect(cls, url: str, timeout_s: float = 10) -> LogConnection:
        """Connects and prepares, blocking for about ``timeout_s`` at most. Raises
        LogConnectionLost."""
        connection: Connection | None = None
        try:
            place = libpq_url(url)
            missing = {k: v for k, v in _KEEPALIVE.items() if k not in conninfo_to_dict(place)}
            connection = connect_checked(make_conninfo(place, **missing), timeout_s)
            connection.autocommit = True
            connection.execute(_SESSION)
            result = connection.pgconn.prepare(_STATEMENT, _APPEND)
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise LogConnectionLost(_message(result))
            return cls(connection)
        except (psycopg.Error, PostgresUnavailableError) as error:
            if connection is not None:
                connection.close()
            raise LogConnectionLost(str(error)) from error
        except LogConnectionLost:
            if connection is not None:
                connection.close()
            raise

    def fileno(self) -> int:
        """The socket to watch: for reading always, for writing while ``flush`` says so."""
        return self._fileno

    @property
    def backend_pid(self) -> int:
        """The server process at the other end."""
        return self._pgconn.backend_pid

    def send(self, append: Append) -> None:
        """Queues one batch; ``flush`` then moves it on. Raises LogConnectionLost."""
        parameters = encode_append(append)
        try:
            self._pgconn.send_query_prepared(
                _STATEMENT, parameters, param_formats=_BINARY, result_format=pq.Format.BINARY
            )
            self._pgconn.pipeline_sync()
        except psycopg.Error as error:
            raise LogConnectionLost(str(error)) from error
        self._sent.append(append.number)

    def flush(self) -> bool:
        """Writes what the socket takes; True if some is left, to be tried when it is writable."""
        try:
            left = self._pgconn.flush() == 1
        except psycopg.Error as error:
            raise LogConnectionLost(str(error)) from error
        if self._pgconn.status != pq.ConnStatus.OK:
            # A write that failed may close the socket and yet be no error: nothing would be read.
            raise LogConnectionLost(self._pgconn.get_error_message() or "the connection is closed")
        return left

    def receive(self) -> list[tuple[int, AppendResult]]:
        """The answers that have arrived, in the order of sending: (number, answer).

        After a conflict later batches that were under way are answered as conflicts too: they were
        numbered on the assumption that it was in. Raises LogConnectionLost."""
        answers: list[tuple[int, AppendResult]] = []
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            while self._sent and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    continue  # the end of one statement's results; its Sync follows
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    answers.append((self._sent.popleft(), self._judge()))
                else:
                    self._answer = _read(result)
        except psycopg.Error as error:
            raise LogConnectionLost(str(error)) from error
        return answers

    def _judge(self) -> AppendResult:
        """The answer to the batch whose transaction has just ended."""
        answer, self._answer = self._answer, None
        if answer is None:
            raise LogConnectionLost("Postgres did not answer a batch")
        if self._conflict:
            return AppendResult(CONFLICT, _AFTER_CONFLICT)
        self._conflict = answer.verdict == CONFLICT
        return answer

    def close(self) -> None:
        """Closes the connection; batches that are under way may be applied or not."""
        with contextlib.suppress(psycopg.Error):
            self._connection.close()


def _read(result: pq.abc.PGresult) -> AppendResult:
    if result.status == pq.ExecStatus.TUPLES_OK:
        value = result.get_value(0, 0)
        assert value is not None
        return _ANSWERS[value]
    sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    if sqlstate.decode() == CONFLICT_SQLSTATE:
        detail = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        return AppendResult(CONFLICT, detail.decode(errors="replace"))
    raise LogConnectionLost(_message(result), sqlstate.decode())


def _message(result: pq.abc.PGresult) -> str:
    return result.get_error_message().strip() or "the connection to Postgres broke"
