"""A state of an actor is taken only from where it lives, and after a call that the log has."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes what ``regrow.append`` takes of the states of actors."""
    run_file("0009_checkpoints_of_calls.sql")
