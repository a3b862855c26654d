"""An actor whose process is gone before anybody has logged that it lived restarts, too."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes what ``regrow.append`` makes of such an actor."""
    run_file("0006_actors_that_end_at_once.sql")
