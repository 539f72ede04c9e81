"""The whole paper from one file: what a study says, its stages over a run folder, and the paper's own studies."""
