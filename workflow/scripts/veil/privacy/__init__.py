"""Guarantees (floor 2): sampling, clipping and noise, and what they cost."""
