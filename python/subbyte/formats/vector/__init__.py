"""Checkpoints of vector quantization, with or without outliers and rotations."""
