"""Check configs and build the parts that they name."""
