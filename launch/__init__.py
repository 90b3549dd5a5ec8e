"""Start the trainer on one machine, a cluster or Cloud TPU; no TensorFlow is imported here."""
