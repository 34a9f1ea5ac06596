"""A training run: its configuration, its parts and its command line."""
