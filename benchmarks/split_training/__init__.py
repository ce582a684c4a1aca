"""Bytes, speed and accuracy of training across the cut: ``python -m benchmarks.split_training``."""
