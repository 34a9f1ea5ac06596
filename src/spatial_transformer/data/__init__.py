"""Data sets, one module for each, and the distortions."""
