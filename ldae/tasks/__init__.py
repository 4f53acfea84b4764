"""Tasks: maps from a batch to (x0, cond)."""
