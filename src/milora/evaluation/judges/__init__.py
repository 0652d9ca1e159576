"""Text → grade, by another model."""
