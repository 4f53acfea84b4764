"""Training objectives: trainable modules with a loss."""
