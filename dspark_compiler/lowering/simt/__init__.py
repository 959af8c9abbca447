"""What the operators of a program become on a GPU of any maker."""
