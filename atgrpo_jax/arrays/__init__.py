"""Trees of arrays whatever the model: their mesh, whether they are finite, how they are saved."""
