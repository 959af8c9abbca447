"""What kernels of all GPUs have in common: TIR with bound threads, and nothing that depends on how many are a group."""
