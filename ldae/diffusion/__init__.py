"""The mathematics of corruption and restoration. Imports torch only; knows no network."""
