"""Scores as pure functions on arrays (floor 2)."""
