"""Commands that make images: sample, restore, likelihood, search-schedule."""
