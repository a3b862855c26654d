"""Brings the schema ``regrow`` of a database up to date, or prints the SQL that would.

Decides nothing about the schema, which is in ``migrations``. A database that is up to date costs
one query and does not import alembic; of several processes that start at once one migrates.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from regrow.gcs.postgres_url import connect_checked, libpq_url

if TYPE_CHECKING:
    from alembic.config import Config

#: The newest revision in ``migrations/versions``.
HEAD: Final = "0013"
#: Key of the advisory lock under which a database is migrated.
_MIGRATION_LOCK: Final = 0x7265_6772_6F77
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database's schema cannot be used by this version of regrow; the message says why."""


def version(connection: psycopg.Connection[tuple[str, ...]]) -> str:
    """The revision of the database; empty if it has no schema ``regrow`` yet."""
    found = connection.execute("SELECT to_regclass('regrow.schema_version')::text").fetchone()
    if found is None or found[0] is None:
        return ""
    row = connection.execute("SELECT version_num FROM regrow.schema_version").fetchone()
    return row[0] if row else ""


def upgrade(url: str, timeout_s: float = 8) -> bool:
    """Brings the schema up to date; True if there was anything to do.

    Raises PostgresUnavailableError if the server cannot be used, and SchemaError if the database
    was made by a newer version of regrow.
    """
    with connect_checked(url, timeout_s) as connection:
        if version(connection) == HEAD:
            return False
        connection.rollback()
        connection.autocommit = True
        connection.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        present = version(connection)
        if present == HEAD:
            return False
        _migrate(url, present)
    return True


def _migrate(url: str, present: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    config = _config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present and present not in known:
        raise SchemaError(
            f"the database has schema version {present}, which this version of regrow does not "
            f"know (it knows {HEAD}): use the newer regrow, or another database"
        )
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(libpq_url(url)), poolclass=NullPool
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS regrow")
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)


def offline_sql() -> str:
    """The SQL that makes the schema in an empty database, for those who run it by hand."""
    from alembic import command

    output = io.StringIO()
    command.upgrade(_config(output), HEAD, sql=True)
    return output.getvalue()


def _config(output: io.StringIO | None = None) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
