"""Where other libraries meet subbyte. Each module imports its library, and is imported by who uses it."""
