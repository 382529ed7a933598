"""Who chooses the layers of an input."""
