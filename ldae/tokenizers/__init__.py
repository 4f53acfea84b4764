"""Tokenizers: images to grids of latents and back."""
