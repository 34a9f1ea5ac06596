"""Hydra plugins of this project. Hydra finds plugins only in ``hydra_plugins``."""
