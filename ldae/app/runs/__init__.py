"""Compare the runs below a folder."""
