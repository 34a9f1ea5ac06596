"""Loggers, named after what they write to."""
