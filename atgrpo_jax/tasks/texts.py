"""Finds the program and the last list in a text. Every search takes one pass, whatever the text is.

A fenced block begins with a line that ends in three or more backticks and perhaps a tag, or that
begins with three tildes. It ends with as many backticks outside of Python's strings. So a program
may have fences in its strings, and a fence may follow the last line of code.
"""

import dataclasses
import re

FENCE = re.compile("`{3,}")
THOUGHT = "</think>"  # the text before it is thinking, not part of the answer
# A list of groups in brackets or parentheses, or a list without a list in it.
_LIST = re.compile(r"\[\s*(?:(?:\[[^\[\]()]*\]|\([^\[\]()]*\))[\s,;]*)+\]|\[[^\[\]]*\]")
_GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_TAG = re.compile(r"[{.\s]*([\w+#-]*)")
_PYTHON = re.compile(r"(python|py)-?\d*")
_PIECES = re.compile(r"\\.|#|'''|\"\"\"|'|\"|`{3,}")
# Signs of a program, rare in its output: a call, an assignment, a statement.
_CODE = re.compile(
    r"\w\(|[^=<>!]=[^=]|^[ \t]*(import|from|def|class|for|while|if|with|try|assert|async)\b", re.MULTILINE
)


def last_list(text: str) -> str | list[str] | None:
    """Returns the content of the last list in brackets. If it is a list of lists or of tuples,
    returns the content of each of these. Returns None if there is no list."""
    found = _LIST.findall(text)
    if not found:
        return None
    inside = found[-1][1:-1]
    if not inside.lstrip().startswith(("[", "(")) or not inside.rstrip(" \t\n\r,;").endswith(("]", ")")):
        return inside
    groups = _GROUP.findall(inside)
    return groups if _GROUP.sub("", inside).strip(" \t\n\r,;") == "" else inside


@dataclasses.dataclass(frozen=True)
class Block:
    tag: str  # in lower case
    code: str
    closed: bool  # false if the text breaks off in it

    @property
    def python(self) -> bool:
        return _PYTHON.fullmatch(self.tag) is not None


def python_block(text: str) -> str | None:
    """Returns the program in a text; None if there is none.

    The program is the last closed block with Python's tag; else the block with that tag in which
    the text breaks off; else the last closed block without a tag; else the last closed block with
    another tag. If there are several of a kind, those that look like Python are preferred. An empty
    block or a session (``>>>``) is no program.
    """
    found = [b for b in blocks(text) if b.code.strip() and not b.code.lstrip().startswith(">>>")]
    closed = [block for block in found if block.closed]
    for kind in (
        [block for block in closed if block.python],
        [block for block in found if block.python],
        [block for block in closed if not block.tag],
        closed,
    ):
        if kind:
            likely = [block for block in kind if _CODE.search(block.code)]
            return (likely or kind)[-1].code.rstrip()
    return None


def blocks(text: str) -> list[Block]:
    """Returns all blocks of a text after its thinking, in order. Lines may end with ``\\n``,
    ``\\r\\n`` or ``\\r``."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[Block] = []
    opened: _Opened | None = None
    strings = True  # recognise strings over several lines; false once one turns out not to end
    place = 0
    while place < len(lines) or (opened and opened.doubtful is not None):
        if place == len(lines) or (opened and opened.broken):
            # The string has no end, so the block has ended at the first fence in it.
            assert opened is not None and opened.doubtful is not None
            place = opened.doubtful
            strings = False
            found.append(opened.block(lines, place, 0))
            opened = None
            place += 1
            continue
        line = lines[place]
        before, thought, after = line.rpartition(THOUGHT)
        if thought and not (before.strip() and after.strip()):
            found = []
            opened = None
            line = after
        end = opened.end(line, place) if opened else None
        if opened and end is not None:
            found.append(opened.block(lines, place, end))
            opened = _opening(line[end:], place, strings) if _tagged(line[end:]) else None
        elif not opened:
            opened = _opening(line, place, strings)
        place += 1
    return [*found, opened.block(lines, len(lines), None)] if opened else found


class _Opened:
    """A block whose end has not been found yet."""

    def __init__(self, fence: str, tag: str, indent: int, first: int, strings: bool):
        self._fence = fence
        self._tag = tag
        self._indent = indent
        self._first = first
        self._strings = strings
        self._string = ""  # the quotes of the string over several lines that is open, or ""
        self._nested = False  # a fenced example is open within that string
        self.doubtful: int | None = None  # line of the string's first fence that opens nothing
        self.broken = False  # that fence was the block's end, as another block begins after it

    def end(self, line: str, place: int) -> int | None:
        """Returns the column at which a line ends the block; None if it does not."""
        bare = line.strip()
        if self._fence[0] == "~":
            return 0 if bare.startswith(self._fence) and not bare.strip("~") else None
        inside = self._string
        quotes = self._string
        for piece in _PIECES.finditer(line):
            found = piece.group()
            if quotes:
                if found[: len(quotes)] == quotes:
                    quotes = ""
            elif found == "#":
                break
            elif found[0] in "'\"":
                quotes = found
            elif found.startswith(self._fence):
                return piece.start()
        self._string = quotes if len(quotes) == 3 and self._strings else ""
        if inside and bare.startswith(self._fence):
            self._within(bare, place)
        closes = not self._string and not inside and bare.endswith(self._fence)  # after a comment
        return len(line.rstrip().rstrip("`")) if closes else None

    def _within(self, bare: str, place: int) -> None:
        """Notes a fence that begins a line in a string: an example's, or the end of the block."""
        if bare.strip("`"):
            self.broken = self.doubtful is not None
            self._nested = True
        elif self._nested:
            self._nested = False
        elif self.doubtful is None:
            self.doubtful = place

    def block(self, lines: list[str], last: int, column: int | None) -> Block:
        """Returns the block, which ends before ``column`` of the line ``last``. The column is None
        if the text breaks off in the block."""
        code = [
            line[self._indent :] if not line[: self._indent].strip() else line
            for line in lines[self._first : last]
        ]
        if column is not None:
            before = lines[last][:column]
            code.append(before if before.strip() else "")
        return Block(self._tag, "\n".join(code), column is not None)


def _opening(line: str, place: int, strings: bool) -> _Opened | None:
    """Returns the block that begins after a line; None if none does."""
    bare = line.strip()
    indent = len(line) - len(line.lstrip())
    if bare.startswith("~~~"):
        about = bare.lstrip("~")
        return _Opened("~" * (len(bare) - len(about)), _tag(about), indent, place + 1, strings)
    fences = list(FENCE.finditer(line))
    if len(fences) % 2 == 0:  # no fence, or code within the line
        return None
    fence = fences[-1]
    about = line[fences[-1].end() :]
    alone = line[: fence.start()].strip() == ""
    if "`" in about or (not alone and not re.fullmatch(r"\s*[\w+#.-]*\s*", about)):
        return None
    if _tag(about) in ("markdown", "md"):  # a text with blocks of its own
        return None
    return _Opened(fence.group(), _tag(about), indent if alone else 0, place + 1, strings)


def _tagged(fence: str) -> bool:
    """Returns whether the fence that ends a block begins another one, because a tag follows it."""
    about = fence.strip().lstrip("`")
    return bool(about) and re.fullmatch(r"[\w+#.-]+", about) is not None


def _tag(about: str) -> str:
    found = _TAG.match(about)
    return found.group(1).lower() if found else ""
