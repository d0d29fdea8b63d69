"""The small model in the package: its weights, and the procedural documents it learned from."""
