"""Side-by-side evaluation: the same prompts to a base model and to its adapter, compared honestly."""
