"""Handles trees of arrays of any model: shards them, checks that they are finite, saves them."""
