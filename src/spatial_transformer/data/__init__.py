"""Data modules: one package per data set."""
