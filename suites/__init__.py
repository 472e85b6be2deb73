"""Hydra configs: one small YAML per choice; a package so that they install with the library."""
