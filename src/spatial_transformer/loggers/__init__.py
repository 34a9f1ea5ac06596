"""Loggers for CSV files and W&B."""
