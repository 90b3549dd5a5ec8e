"""Distributed pretraining and fine-tuning of BERT-family models: one Gin file, any hardware, the same run."""

__version__ = "0.1.0"
