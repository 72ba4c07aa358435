"""One training run as a value and as a loop: experiment, stages, checkpoints, the run folder."""
