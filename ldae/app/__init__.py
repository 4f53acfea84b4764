"""Connect configs, ldae and linear_probe in the commands of the application."""
