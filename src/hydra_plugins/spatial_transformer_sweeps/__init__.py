"""Hydra's plugins of this project, here because Hydra looks for plugins in ``hydra_plugins`` alone: see ``sweeps.py``."""
