"""A model and a text → the same model with quantised weights, as an ordinary checkpoint."""
