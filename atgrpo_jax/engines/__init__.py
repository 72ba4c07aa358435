"""Who draws samples: the protocol of all engines, and the gate that proves which weights one holds."""
