"""Split training on the side that has the pictures. No PyTorch."""
