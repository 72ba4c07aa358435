"""Holds one training run: its config, its loop and stages, its checkpoints and its folder."""
