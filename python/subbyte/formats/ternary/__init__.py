"""Checkpoints of ternary weights."""
