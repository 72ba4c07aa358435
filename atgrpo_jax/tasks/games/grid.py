"""Names cells of a grid and reads lists of moves; Plan-Path and Sokoban share it."""

import re

from atgrpo_jax.tasks.texts import last_list

Cell = tuple[int, int]  # row, column

MOVES: dict[str, Cell] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
_NAMES = {move: move for move in MOVES} | {"UP": "U", "DOWN": "D", "LEFT": "L", "RIGHT": "R"}
_NAMES |= {"↑": "U", "↓": "D", "←": "L", "→": "R"}
_ITEM = re.compile(r"\d+|UP|DOWN|LEFT|RIGHT|[A-Z]+|[^\s\d,;.'\"`‘’“”]")
_WORDY = re.compile(r"[A-Z0-9]")
_PAIR = re.compile(r"(\d+)\s*,\s*(\d+)")


def shift(cell: Cell, move: str, times: int = 1) -> Cell:
    """Returns the cell that a move leads to, even if it is blocked; an unknown move stays."""
    down, right = MOVES.get(move, (0, 0))
    return cell[0] + times * down, cell[1] + times * right


def name(cell: Cell) -> str:
    """Returns the name of a cell: row and column, "03", or "12,3" if either has two digits."""
    return f"{cell[0]}{cell[1]}" if max(cell) < 10 else f"{cell[0]},{cell[1]}"


def move_of(cell: Cell, item: str) -> str:
    """Returns the move that an item of a list asks for: the item itself if it is a move, the move
    to the neighbour of that name, or "?"."""
    return item if item in MOVES else next((m for m in MOVES if name(shift(cell, m)) == item), "?")


def parse_moves(text: str, start: Cell) -> list[str]:
    """Returns the moves in the last bracketed list of ``text``; none if there is no list.

    A move is U, D, L or R, or its word (``[up, right]``) or arrow, or the cell that it leads to. A
    cell is written as its name (``[03 04 14]``), or as Python prints a pair (``[(0, 3), (0, 4)]``).
    Case, quotes, commas and spaces do not matter. The list may begin with the cell that it starts
    from. A word of which more than half the letters are moves is read letter by letter. Any other
    word, letter or sign becomes "?".
    """
    found = last_list(text)
    items = _items(found) if isinstance(found, str) else []
    for group in found if isinstance(found, list) else ():
        pair = _PAIR.fullmatch(group.strip())
        items += [name((int(pair[1][:9]), int(pair[2][:9])))] if pair else _items(group)
    return items[1:] if items and items[0] == name(start) else items


def _items(text: str) -> list[str]:
    text = text.upper()
    if _WORDY.search(text):  # an arrow between words or names means "then"
        text = text.replace("→", " ").replace("->", " ").replace("=>", " ")
    return [item for found in _ITEM.findall(text) for item in _moves(found)]


def _moves(item: str) -> list[str]:
    if item[0].isdigit():
        return [item]
    if item in _NAMES:
        return [_NAMES[item]]
    moves = [_NAMES.get(letter, "?") for letter in item]
    return moves if 2 * moves.count("?") < len(moves) else ["?"]
