"""The stable validation loss during training, on train and twin."""

from alembic import op

from storage.resources import text_of
from storage.schema import run_script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table; nothing is read or changed."""
    run_script(op.get_bind(), text_of("0002_loss_curves.sql", "migrations/versions"))
