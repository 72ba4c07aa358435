"""Draws samples: the protocol of all engines, and the gate that checks which weights one holds."""
