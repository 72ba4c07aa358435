"""Tells which prompt is in which page: a tree of pages, in which prompts share beginnings."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class PromptPages:
    """Manages the prompt pages of one shard.

    A page holds up to ``size`` tokens of a prompt. It is known by these and by the page before it.
    Pages that no sample reads stay until their place is needed; then the longest unread goes first.
    """

    def __init__(self, count: int, size: int):
        self._size = size
        self._free = list(reversed(range(count)))
        self._known: dict[Hashable, int] = {}
        self._names: dict[int, Hashable] = {}
        self._readers = [0] * count
        self._left: OrderedDict[int, None] = (
            OrderedDict()
        )  # known pages without readers, longest unread first; a child before its parent

    def take(self, root: Hashable, prompt: Sequence[int]) -> tuple[list[int], int] | None:
        """Returns the pages of ``prompt``, and how many of the first ones were known.

        Each gets one more reader. Returns None, and changes nothing, if there is no room. Prompts
        of different ``root`` share nothing.
        """
        chunks = [tuple(prompt[i : i + self._size]) for i in range(0, len(prompt), self._size)]
        pages: list[int] = []
        for chunk in chunks:
            page = self._known.get((pages[-1] if pages else root, chunk))
            if page is None:
                break
            pages.append(page)
        known = len(pages)
        left = len(self._left) - sum(page in self._left for page in pages)
        if len(chunks) - known > len(self._free) + left:
            return None
        for page in pages:
            self._readers[page] += 1
            self._left.pop(page, None)
        for chunk in chunks[known:]:
            page = self._free.pop() if self._free else self._evict()
            name = pages[-1] if pages else root, chunk
            self._known[name] = page
            self._names[page] = name
            self._readers[page] = 1
            pages.append(page)
        return pages, known

    def leave(self, pages: Sequence[int]) -> None:
        """Removes one reader from each of these pages of a prompt."""
        for page in reversed(pages):
            self._readers[page] -= 1
            if not self._readers[page]:
                self._left[page] = None

    def _evict(self) -> int:
        page, _ = self._left.popitem(last=False)
        del self._known[self._names.pop(page)]
        return page
