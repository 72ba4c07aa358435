"""The engine in this process: continuous batching over paged attention, on JAX devices."""
