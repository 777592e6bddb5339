"""Alembic's entry: uses the connection and transaction that `storage.schema` hands over. There is no offline mode."""

from alembic import context
from sqlalchemy import text

connection = context.config.attributes["connection"]
connection.execute(text("CREATE SCHEMA IF NOT EXISTS peft_pareto"))
context.configure(connection=connection, version_table_schema="peft_pareto", target_metadata=None)
context.run_migrations()
