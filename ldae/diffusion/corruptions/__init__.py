"""Corruptions from x0 to x_t, one per module."""
