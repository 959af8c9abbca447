"""What the operators of a program become on an Nvidia GPU."""
