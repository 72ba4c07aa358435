"""Turns credited groups into new parameters: batches, loss, jitted update, warm start."""
