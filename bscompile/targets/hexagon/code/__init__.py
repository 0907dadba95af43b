"""Generators of Hexagon's own kernels."""
