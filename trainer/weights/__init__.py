"""Weights in and out: checkpoints of TensorFlow 1, Hugging Face, Keras and this trainer, tensor by tensor."""
