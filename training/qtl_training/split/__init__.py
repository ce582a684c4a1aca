"""Training across the cut: what each side of it does in a step, wherever the other one runs."""
