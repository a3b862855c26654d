"""How the store asks Postgres: one SQL text, its parameters, rows.

Decides nothing. SQL stands beside the code that reads its rows; parameters are named; arrays of ids
are cast in the SQL, because an empty list has no type of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import Connection, TextClause, text

from regrow.gcs.operations import Result

__all__ = ["Connection", "Handler", "Row", "Rows", "by_id", "run", "running_parts"]

#: Carries one operation out, within a transaction.
Handler = Callable[[Connection, Any], Result]
#: Its columns are attributes; what types they have the SQL says.
Row: TypeAlias = Any
Rows: TypeAlias = Sequence[Row]


@cache
def _clause(sql: str) -> TextClause:
    return text(sql)


def run(connection: Connection, sql: str, **parameters: object) -> Rows:
    """The rows of a statement, none if it returns none."""
    result = connection.execute(_clause(sql), parameters)
    return result.all() if result.returns_rows else []


_RUNNING_PARTS = "SELECT regrow.running_parts()"


def running_parts(connection: Connection) -> list[int]:
    """The partitions in which there may be unfinished tasks. Statements that name them are planned
    for them alone, and not for every partition there ever was."""
    [(parts,)] = run(connection, _RUNNING_PARTS)
    found: list[int] = parts
    return found


def by_id(connection: Connection, sql: str, ids: Iterable[bytes]) -> dict[bytes, Row]:
    """Rows by their first column: looked up in the partitions of running jobs, and those that are
    not there in all others. ``sql`` has ``:ids`` and ``:parts``, which is null for all."""
    wanted = set(ids)
    if not wanted:
        return {}
    # Sorted, so that indexes are walked in their order.
    rows = run(connection, sql, ids=sorted(wanted), parts=running_parts(connection))
    found = {row[0]: row for row in rows}
    left = sorted(wanted - found.keys())
    if left:
        found.update((row[0], row) for row in run(connection, sql, ids=left, parts=None))
    return found
