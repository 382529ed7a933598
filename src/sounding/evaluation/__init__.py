"""Sweeps over methods and budgets, and what people look at: tables, plots, model cards."""
