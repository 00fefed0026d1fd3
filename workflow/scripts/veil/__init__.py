"""Veil: what does privacy cost? The library behind the study's rules.

Floors, each leaning only on the ones below: `report` (5), `generators` and
`segmentation` (4), `training` (3), `privacy` and `evaluation` (2), `cohorts`, `patches`,
`volumes` and `artifacts` (1), `config` (0). Nothing here knows the workflow engine.
"""
