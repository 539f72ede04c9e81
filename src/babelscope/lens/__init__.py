"""Which language a layer speaks: hidden states decoded to the vocabulary, and the languages of the tokens."""
