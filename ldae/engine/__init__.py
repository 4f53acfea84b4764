"""Training engine: trainer, train state, checkpoints, logs; independent of models."""
