"""Points: what a study has evaluated, each with its mean and whether it may still be on the front."""

from alembic import op

from storage.resources import text_of
from storage.schema import run_script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table, and the points of what was evaluated before."""
    run_script(op.get_bind(), text_of("0005_points.sql", "migrations/versions"))
