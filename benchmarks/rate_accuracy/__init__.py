"""Bytes against accuracy: our quantizers and every rival, in one harness."""
