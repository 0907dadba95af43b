"""Generators of the CPU's own loop nests: attention, batched matmul, rows (softmax, norms)."""
