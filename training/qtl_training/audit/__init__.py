"""Attacks on what crosses the wire, and what they recover: the audit behind ``qtl-audit``."""
