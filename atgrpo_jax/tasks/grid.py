"""Cells of a grid, their names, and lists of moves as they are written: what Plan-Path and Sokoban share."""

import re

Cell = tuple[int, int]  # row, column

MOVES: dict[str, Cell] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}


def shift(cell: Cell, move: str, times: int = 1) -> Cell:
    """Where a move leads, whatever is there; an unknown one leads nowhere."""
    down, right = MOVES.get(move, (0, 0))
    return cell[0] + times * down, cell[1] + times * right


def name(cell: Cell) -> str:
    """Row and column, e.g. "03"; "12,3" if either has two digits."""
    return f"{cell[0]}{cell[1]}" if max(cell) < 10 else f"{cell[0]},{cell[1]}"


def move_of(cell: Cell, item: str) -> str:
    """What an item of a list asks for: itself if it is a move, the move to the cell of that name, or "?"."""
    return item if item in MOVES else next((m for m in MOVES if name(shift(cell, m)) == item), "?")


def parse_moves(text: str, start: Cell) -> list[str]:
    """The moves in the last bracketed list of ``text``; none if there is no list.

    A move is one of U, D, L, R or the name of the cell that it leads to: reads ``[URD]``, ``[U, R, D]``,
    ``['U', "R"]``, lower case, and ``[03 04 14]``. The list may begin with the cell that it starts from.
    Anything else in it is kept as "?".
    """
    lists = re.findall(r"\[([^\[\]]*)\]", text)
    items = re.findall(r"\d+|[^\s\d,'\"]", lists[-1].upper()) if lists else []
    moves = [item if item in MOVES or item.isdigit() else "?" for item in items]
    return moves[1:] if moves and moves[0] == name(start) else moves
