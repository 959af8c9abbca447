"""ROCm: what TVM's AMDGPU code generator needs from outside, and checks of what comes of it."""
