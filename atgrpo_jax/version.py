"""The version: its only home. setup.py runs this file, so it imports nothing."""

__version__ = "0.1.0"
