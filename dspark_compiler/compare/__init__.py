"""The artifact against its source model: same tokens, and how likely it finds a text."""
