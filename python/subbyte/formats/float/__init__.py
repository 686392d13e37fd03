"""Checkpoints of small floats with scales."""
