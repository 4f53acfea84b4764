"""The YAML files of `ldae`, one group for each axis; an installed package has them as `ldae.configs`."""
