"""The engine that draws from sglang-jax in this process."""
