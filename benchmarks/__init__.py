"""Benchmarks: one script per claim; ``python -m benchmarks`` runs them all."""
