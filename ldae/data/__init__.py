"""Data sets and loaders: decoding, caching, splits, augmentation and order."""
