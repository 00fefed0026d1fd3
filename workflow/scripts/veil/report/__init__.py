"""Figures, tables and the page, from tables, JSON and sample pairs alone (floor 5)."""
