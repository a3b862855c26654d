"""Named jobs: their runs, and the drivers that resume them."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes ``regrow.jobs`` and what ``regrow.append`` takes for a contradiction."""
    run_file("0005_jobs.sql")
