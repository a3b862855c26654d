"""How the store asks Postgres: one SQL text, its parameters, rows.

Decides nothing. SQL stands beside the code that reads its rows; parameters are named; arrays of ids
are cast in the SQL, because an empty list has no type of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import Connection, TextClause, text

from regrow.gcs.operations import Result

__all__ = ["Connection", "Handler", "Row", "Rows", "run"]

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
