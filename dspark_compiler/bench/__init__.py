"""Measuring an artifact: speed against other ways to run the same model, and quality."""
