"""What is asked of a model: a class, several tags, a text."""
