"""What every room uses, and that uses none: errors, checks of fields, files, signals, types."""
