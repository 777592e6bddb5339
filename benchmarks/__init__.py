"""Measurements: each prints its figures, and writes its part of docs/ with the command that made it."""
