"""What to learn: a task turns examples into losses, metrics and predictions, and knows nothing of strategies."""
