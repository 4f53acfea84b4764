"""Training: one loop, its checkpoints, its logs. Knows players, never models."""
