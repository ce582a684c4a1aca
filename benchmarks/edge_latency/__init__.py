"""What the device's side costs over what it cannot avoid: ``python -m benchmarks.edge_latency``."""
