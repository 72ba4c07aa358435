"""Audits groups, computes advantages, chooses who is executed. Needs no JAX; imports ``common``."""
