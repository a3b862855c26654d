"""Arguments of calls that a saved state covers leave the log."""

from __future__ import annotations

from regrow.gcs.migrations import run_file

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Calls may be without their specification; actors know up to which theirs are."""
    run_file("0011_trimmed_calls.sql")
