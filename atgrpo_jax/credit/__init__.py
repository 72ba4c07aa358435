"""Groups of candidates: their audit, advantages, who is executed. Needs no JAX; imports ``common``."""
