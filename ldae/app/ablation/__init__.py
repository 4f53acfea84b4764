"""Run ablations: grids of trials, their cost, their runs and reports."""
