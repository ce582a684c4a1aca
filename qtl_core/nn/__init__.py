"""The model in PyTorch: quantizer, client partition, server partition, checkpoint readers."""

from qtl_core.nn.quantizer import Quantizer

__all__ = ["Quantizer"]
