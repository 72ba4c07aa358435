"""The engine that draws from SGLang servers over HTTP."""
