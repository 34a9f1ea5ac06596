"""Helpers that do not depend on the rest of the package, one job per file."""
