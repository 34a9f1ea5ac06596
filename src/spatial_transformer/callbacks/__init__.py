"""Callbacks that measure, draw, save and guard a run."""
