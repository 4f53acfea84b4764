"""Demonstrate l-DAE on embedded photographs in three minutes."""
