"""What a driver submitted that another has replaced does not enter the log any more."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes what ``regrow.append`` does with specs, and takes for a contradiction."""
    run_file("0008_fenced_drivers.sql")
