"""The procedural world of the embedded model: texts of several genres, and questions about them."""
