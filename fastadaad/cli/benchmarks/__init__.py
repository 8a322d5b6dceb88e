"""Training steps of a recipe, timed beside the plain program of its method."""
