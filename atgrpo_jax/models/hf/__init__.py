"""Reads and writes model folders of Hugging Face."""
