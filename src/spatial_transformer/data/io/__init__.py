"""Data set directories, image files, worker processes, and caches of prepared images."""
