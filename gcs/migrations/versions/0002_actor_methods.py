"""A named actor tells its methods to those who get it by name."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds ``regrow.actors.methods``."""
    op.execute("ALTER TABLE regrow.actors ADD COLUMN methods bytea")
    op.execute(
        "COMMENT ON COLUMN regrow.actors.methods IS 'msgpack of {method: [number of return values, "
        "its parameters]}, where it has a name.'"
    )
