"""What the entropy coder saves, and what it costs; see ``__main__``."""
