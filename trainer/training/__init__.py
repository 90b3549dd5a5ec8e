"""The step, the loop around it, and what keeps a run alive: checkpoints, interruption, guards, telemetry."""
