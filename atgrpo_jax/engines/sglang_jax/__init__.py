"""Draws samples with sglang-jax in this process."""
