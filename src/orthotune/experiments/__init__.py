"""Experiments of many runs: sweeps over methods, tasks, settings and seeds, and their results as files."""
