"""Reading and checking gin files; `trainer.config` is the way in."""
