"""Commands that score frozen features: probe, dense."""
