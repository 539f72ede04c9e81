"""The Hugging Face model, understood: where its neurons live, and what they do in a forward pass."""
