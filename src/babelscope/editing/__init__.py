"""Acting on a model's neurons."""
