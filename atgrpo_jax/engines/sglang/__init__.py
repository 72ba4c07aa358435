"""Draws samples from SGLang servers over HTTP."""
