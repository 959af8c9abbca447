"""Trains decode heads: the target writes sequences, a drafter learns to foresee them."""
