"""Kernels for AMD's GPUs that use what their makers' instructions have beyond schedules/simt."""
