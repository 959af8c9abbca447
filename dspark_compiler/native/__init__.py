"""Runtime libraries of our own in C++: how they are built and found, and the headers they share."""
