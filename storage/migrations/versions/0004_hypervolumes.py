"""Which trial was finished as the how-maniest follows from the trials themselves, and is no longer noted with a hypervolume."""

from alembic import op

from storage.resources import text_of
from storage.schema import run_script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drops two columns that the view hypervolume_history now counts; the hypervolumes stay."""
    run_script(op.get_bind(), text_of("0004_hypervolumes.sql", "migrations/versions"))
