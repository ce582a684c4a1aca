"""Audits of what leaks while a model is trained across the cut."""
