"""Image quality. Imports `ldae.core.types` at most."""
