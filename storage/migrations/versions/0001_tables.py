"""The first tables: studies, leases, candidates, scores, artifacts."""

from alembic import op

from storage.resources import text_of
from storage.schema import run_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes them. There is no way down but a backup: tables hold what took days to compute."""
    run_script(op.get_bind(), text_of("0001_tables.sql", "migrations/versions"))
