"""Rewrites of a Program, one file each; ``pipeline.py`` has them in order."""
