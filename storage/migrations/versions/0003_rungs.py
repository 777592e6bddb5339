"""Rungs: a trial is evaluated at several numbers of steps, and may be left and taken up again."""

from alembic import op

from storage.resources import text_of
from storage.schema import run_script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables; every finished trial's scores become its one rung, at its own steps."""
    run_script(op.get_bind(), text_of("0003_rungs.sql", "migrations/versions"))
