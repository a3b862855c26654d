"""An actor that comes to be known only after its job has ended can come back with it."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Notes for such actors why they are dead, which is what a resumed job looks for."""
    run_file("0013_actors_of_ended_jobs.sql")
