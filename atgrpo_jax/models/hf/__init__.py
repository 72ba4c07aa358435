"""Model folders of Hugging Face, read and written."""
