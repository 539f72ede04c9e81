"""From forward passes to a language's neurons."""
