"""Migrations of the schema ``regrow``: alembic revisions whose contents are plain SQL files."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

VERSIONS = Path(__file__).parent / "versions"


def run_file(name: str) -> None:
    """Runs (or, offline, prints) one SQL file of ``versions`` exactly as it is written."""
    sql = (VERSIONS / name).read_text()
    if context.is_offline_mode():
        op.get_context().impl.static_output(sql)
    else:
        driver_connection = op.get_bind().connection.driver_connection
        assert driver_connection is not None
        driver_connection.execute(sql)
