"""How a dynamic model is trained."""
