"""What the operators of a program become on Vulkan devices: as on any GPU, but for cooperative matrices."""
