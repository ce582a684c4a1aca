"""``qtl-export --trainable``: the client's training step as plain ONNX, for devices without PyTorch."""
