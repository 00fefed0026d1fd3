"""Cohorts (floor 1): finding, importing, checking and splitting them, and making phantoms."""
