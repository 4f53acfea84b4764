"""Types, errors, files and random numbers that every layer shares."""
