"""An actor lives on one node at a time."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rejects a batch of a node on which an actor is to live that lives on another."""
    run_file("0012_actors_live_once.sql")
