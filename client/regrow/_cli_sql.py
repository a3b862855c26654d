"""``regrow sql``, one statement on the cluster's database, read-only unless asked otherwise; and
``regrow db``."""

from __future__ import annotations

from pathlib import Path

import psycopg

from regrow._cli_database import Connection, connected, connection_url
from regrow._cli_render import print_json, print_table
from regrow.exceptions import ClusterConnectionError, RayError
from regrow.gcs.postgres_url import PostgresUnavailableError


class StatementError(RayError):
    """The database refused the statement."""

    code = "statement"


class StatementWritesError(StatementError):
    """The statement changes data and was not allowed to."""

    code = "statement_writes"


def run(home: Path, query: str, *, as_json: bool, write: bool) -> None:
    """Execute the statement and print its rows.

    Raises StatementError if the database refuses it, ClusterConnectionError if there is none.
    """
    with connected(home, write=write) as connection:
        names, rows, said = execute(connection, query)
        if write:
            connection.commit()
    if as_json:
        print_json(names, rows)
    elif names:
        print_table(names, rows)
    else:
        print(said)


def execute(connection: Connection, query: str) -> tuple[list[str], list[tuple[object, ...]], str]:
    """The names of the columns, the rows, and what the server said; of several statements the last.

    Raises StatementError.
    """
    # Bytes: the text is the user's, whose % are no placeholders.
    try:
        cursor = connection.execute(query.strip().encode())
        while cursor.nextset():
            pass
        names = [column.name for column in cursor.description or ()]
        return names, cursor.fetchall() if names else [], cursor.statusmessage or ""
    except psycopg.errors.ReadOnlySqlTransaction:
        raise StatementWritesError(
            "the statement changes data, which `regrow sql` does only with --write"
        ) from None
    except psycopg.Error as error:
        raise StatementError(_sentence(error, query)) from None


def _sentence(error: psycopg.Error, query: str) -> str:
    said = error.diag.message_primary or str(error).strip().splitlines()[0]
    if error.diag.statement_position:
        position = int(error.diag.statement_position)
        before = query.strip()[: position - 1]
        near = query.strip()[position - 1 :].split(maxsplit=1)[:1]
        line = before.count("\n") + 1
        said += f" (line {line}, at {near[0]!r})" if near else f" (line {line})"
    if error.diag.message_hint:
        said += f"; {error.diag.message_hint}"
    return said


def upgrade(home: Path, *, print_only: bool) -> None:
    """Bring the schema up to date, or print it. Raises ClusterConnectionError."""
    from regrow.gcs import schema

    if print_only:
        print(schema.offline_sql())
        return
    with connection_url(home) as url:
        try:
            changed = schema.upgrade(url)
        except (PostgresUnavailableError, schema.SchemaError) as error:
            raise ClusterConnectionError(str(error)) from None
    print(f"The schema is {'now' if changed else 'already'} at version {schema.HEAD}.")
