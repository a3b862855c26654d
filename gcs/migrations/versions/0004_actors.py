"""Actors that come back: how often they may, how often they did, and the state "restarting"."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes ``regrow.actors`` and what ``regrow.append`` does with it."""
    run_file("0004_actors.sql")
