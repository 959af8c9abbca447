"""What the operators of a program become on AMD's GPUs: as on any maker's, but for matrix instructions."""
