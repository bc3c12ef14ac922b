"""Training: options, recipes, the loop and everything it needs."""
