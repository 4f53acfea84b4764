"""What a batch of data means: batch -> (x0, cond)."""
