"""l-DAE: self-supervised representation learning by denoising (arXiv 2401.14404)."""

__version__ = "0.2.0"
