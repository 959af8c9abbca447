"""What the operators of a program become on a Vulkan device."""
