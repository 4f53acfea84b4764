"""Networks that restore: (x_t, level, cond) -> out."""
