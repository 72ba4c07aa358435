"""Credited groups to new parameters: batches, the loss, the jitted update, the warm start."""
