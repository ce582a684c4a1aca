"""Fine-tuning a post-training quantizer against the model itself, from pictures alone."""
