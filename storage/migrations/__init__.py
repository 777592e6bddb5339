"""Alembic's migrations of the tables in `peft_pareto`, run by `storage.schema`; functions and views are in sql/."""
