"""Corruptions: how a clean image or latent becomes x_t. One path per file."""
