"""The task of many small problems at once. Imports ``tasks`` itself."""
