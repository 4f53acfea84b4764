"""Generate and restore images with a trained denoiser."""
