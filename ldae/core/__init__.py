"""Types, errors, files, progress and random numbers that every layer uses."""
