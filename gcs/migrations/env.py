"""Run by alembic: in the transaction of ``regrow.gcs.schema``, or offline, printing SQL."""

from __future__ import annotations

from alembic import context

VERSION_TABLE = "schema_version"
SCHEMA = "regrow"

if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        as_sql=True,
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
    )
    context.get_context().impl.static_output(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA};")
else:
    context.configure(
        connection=context.config.attributes["connection"],
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
    )
with context.begin_transaction():
    context.run_migrations()
