"""Defines families of models, each with its block, its names in folders, its axes and its sizes.

A new family is one file here, which makes a ``family.Family``, and one line in table.py.
"""
