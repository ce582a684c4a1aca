"""Digit scenes: pictures of real handwritten digits on a grid, and questions about them."""
