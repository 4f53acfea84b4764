"""Image quality. Imports `ldae.types` at most."""
