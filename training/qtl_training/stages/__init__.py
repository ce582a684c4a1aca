"""The stages of a recipe, each a sequence of optimizer steps."""
