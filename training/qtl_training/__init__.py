"""Training and evaluation of split vision-language models."""
