"""The mathematics of a neuron's impact, on plain tensors. It knows nothing of models."""
