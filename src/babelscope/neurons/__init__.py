"""What is counted and kept: statistics of neurons, sets of neurons, and their files."""
