"""Jobs on Cloud TPU: machines are asked for, set up, watched, made again when they are taken away, and deleted."""
