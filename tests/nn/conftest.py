"""The tiny model."""

from tests.tiny import tiny, tiny_folder

__all__ = ["tiny", "tiny_folder"]
