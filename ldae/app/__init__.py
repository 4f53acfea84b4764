"""The application: the only place where configs, ldae and linear_probe meet."""
