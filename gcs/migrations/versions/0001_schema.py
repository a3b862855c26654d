"""The schema as it began."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates everything in the schema ``regrow``."""
    for part in ("tables", "append", "views", "role"):
        run_file(f"0001_{part}.sql")
