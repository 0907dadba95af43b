"""Kernel templates for NVIDIA GPUs: what to try, what it costs, how the weight is packed."""
