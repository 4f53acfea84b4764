"""Images from disk to batches: decoding, caching, splitting, augmenting, ordering."""
