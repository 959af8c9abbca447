"""Kernel templates for GPUs of any maker: TIR with bound threads, teams of eight and shared memory, nothing else."""
