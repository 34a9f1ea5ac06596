"""Image files, worker processes, and caches of prepared images."""
