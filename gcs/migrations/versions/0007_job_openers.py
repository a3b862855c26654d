"""A driver that asks for its job again, because the answer was lost, is given the same one."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds ``regrow.jobs.opener``."""
    op.execute("ALTER TABLE regrow.jobs ADD COLUMN opener bytea")
    op.execute(
        "COMMENT ON COLUMN regrow.jobs.opener IS 'Of a named job: 16 random bytes of the request "
        "that began its latest driver.'"
    )
