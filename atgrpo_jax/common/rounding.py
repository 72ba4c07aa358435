"""Rounds sizes up, so that few different shapes have to be compiled."""


def round_up(length: int, multiple: int) -> int:
    """Returns the least multiple of ``multiple`` that is not below ``length``."""
    return -(-length // multiple) * multiple


def power_of_two(least: int) -> int:
    """Returns the least power of two that is not below ``least``; 0 for 0."""
    return 1 << (least - 1).bit_length() if least else 0
