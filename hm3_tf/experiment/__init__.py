"""Experiments: methods on logs over seeds, what is measured of them, and their tables and plots."""
