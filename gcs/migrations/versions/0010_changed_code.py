"""Tasks that run again in a job that is resumed ask what is to be done where code has changed."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds ``regrow.jobs.on_changed_code``."""
    op.execute("ALTER TABLE regrow.jobs ADD COLUMN on_changed_code text NOT NULL DEFAULT 'error'")
    op.execute(
        "COMMENT ON COLUMN regrow.jobs.on_changed_code IS 'What its latest driver said of results "
        "of functions whose code has changed: error, rerun or keep.'"
    )
