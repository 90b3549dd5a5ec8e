"""Models in `keras.ops` only: layers, the encoder, heads."""
