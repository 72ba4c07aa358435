"""Where the seconds of a step go: they are watched, and those of the update are divided."""
