"""What attaching decode heads is made of: the target's share, the rings, the sampling."""
