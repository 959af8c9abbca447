"""Models of real shapes whose weights are made where they are measured."""
