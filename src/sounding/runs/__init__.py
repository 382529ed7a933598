"""Runs: the directory that a training writes, its settings, and what is measured on it."""
