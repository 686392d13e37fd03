"""Checkpoints whose codes are looked up in tables."""
