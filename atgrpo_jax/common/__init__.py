"""Holds what every room uses: errors, checks of fields, files, signals, types. It uses no room."""
