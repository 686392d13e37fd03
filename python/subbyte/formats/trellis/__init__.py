"""Formats whose codes are the states of a trellis."""
