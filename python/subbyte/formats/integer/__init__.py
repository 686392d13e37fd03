"""Checkpoints of integers with scales."""
