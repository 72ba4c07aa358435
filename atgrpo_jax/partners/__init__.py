"""Roles that are not trained: models on servers that speak the OpenAI API. Needs no JAX."""
