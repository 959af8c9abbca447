"""Kernel templates for Nvidia GPUs: TIR with bound threads, and PTX where TIR has no word for an instruction."""
