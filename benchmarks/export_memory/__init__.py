"""Memory of an export: ``python -m benchmarks.export_memory``."""
