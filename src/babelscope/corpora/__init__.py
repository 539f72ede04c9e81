"""Text in: sources, sampling, batches."""
