"""What leaves the building: a bundle, and the scanner that it has to pass (floor 5)."""
