"""Shows one node of a run as a text, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import Node, speaker

# What a cell of a board looks like, by its kind: on a terminal before its label, on the page if it has
# none, where each kind has a colour (page.css).
SIGNS = {
    "floor": ".", "wall": "#", "hole": "O", "goal": "G", "agent": "@", "box": "$", "done": "*",
    "proposed": "+", "given": "'", "filled": "=", "wrong": "x",
}  # fmt: skip


def node(folder: RunFolder, name: str) -> str:
    """Returns a text about all that lies under a node of a run: an episode, a turn, a group.

    Raises ConfigError if the name has another form, and RunError if there is no such node.
    """
    wanted = Node.parse(name)
    path = folder.episodes_of(wanted.step, wanted.split)
    try:
        episodes = list(folder.read_episodes(wanted.step, wanted.split))
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is not there: no episodes of {wanted.split} in step {wanted.step} are kept"
        ) from error
    found = [episode for episode in episodes if episode["instance"] == wanted.instance]
    if not found:
        there = sorted({episode["instance"] for episode in episodes})
        raise RunError(f"{path} has no instance {wanted.instance}; it has {_listed(there)}")
    texts = [
        episode_text(episode, groups, wanted.k)
        for episode in found
        if wanted.episode in (None, episode["episode"])
        and (groups := list(filter(wanted.holds, episode["groups"])))
    ]
    if not any(texts):
        raise RunError(f"{path} has nothing at {name}; without its last part, the whole is shown")
    return "\n\n".join(filter(None, texts))


def _listed(numbers: Sequence[int]) -> str:
    """Returns ascending numbers as text; a curriculum leaves gaps between them."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def episode_text(
    episode: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], k: int | None = None
) -> str:
    """Returns a text of an episode with these of its groups, or with one candidate of each."""
    shown = [text for group in groups if (text := _group(group, k))]
    if not shown:
        return ""
    head = (
        f"{episode['split']}, step {episode['step']}, instance {episode['instance']}, "
        f"episode {episode['episode']}: {episode['end']} after {counted(episode['turns'], 'turn')}"
    )
    boards = [group["board"] for group in groups]
    at_the_end = []
    if groups == episode["groups"]:
        boards.append(episode["board"])
        at_the_end = _board("at the end", episode["board"])
    return "\n\n".join([head + _legend(boards), *shown, *at_the_end])


def _group(group: Mapping[str, Any], only: int | None) -> str:
    if only is not None and only >= len(group["candidates"]):
        return ""
    head = (
        f"== turn {group['turn']}, stage {group['stage']}, {speaker(group)}, policy {group['policy']}, "
        f"weights {group['version']}"
    )
    candidates = [
        _candidate(candidate, k, k == group["executed"])
        for k, candidate in enumerate(group["candidates"])
        if only in (None, k)
    ]
    return "\n".join([head, *_board("board", group["board"]), _indented(group["prompt"]), *candidates])


def _board(title: str, board: Any) -> list[str]:
    return [] if board is None else [f"-- {title}:\n{_indented(board_text(board))}"]


def _legend(boards: Sequence[Any]) -> str:
    """Returns a line on the signs in boards that are rows of cells; "" if there are none."""
    rows = [row for board in boards if board is not None and not isinstance(board, str) for row in board]
    kinds = {cell.partition(" ")[0] for row in rows for cell in row}
    signs = [f"{sign} {kind}" for kind, sign in SIGNS.items() if kind in kinds]
    return f"\nsigns on boards: {', '.join(signs)}" if signs else ""


def board_text(board: str | Sequence[Sequence[str]]) -> str:
    """Returns a board as lines: its own text, or a column for each cell of a row."""
    if isinstance(board, str):
        return _spelt(board)
    rows = [[_spelt(cell_text(cell)).replace("\n", " ") for cell in row] for row in board]
    width = max((len(text) for row in rows for text in row), default=0)
    return "\n".join(" ".join(text.ljust(width) for text in row).rstrip() for row in rows)


def cell_text(cell: str) -> str:
    """Returns the sign of a cell's kind and its label; a kind without a sign is spelt."""
    kind, _, label = cell.partition(" ")
    if kind in SIGNS:
        return SIGNS[kind] + label
    return f"{kind}:{label}" if label else kind


def _candidate(candidate: Mapping[str, Any], k: int, executed: bool) -> str:
    said = [f"-- candidate {k}{', executed' if executed else ''}: {candidate['outcome']}"]
    if candidate["mixed"] is not None:
        parts = ", ".join(f"{name} {value:.3g}" for name, value in candidate["parts"].items())
        local = f"{candidate['local']:.3g}" + (f": {parts}" if parts else "")
        said.append(f"   reward {candidate['mixed']:.3g} (team {candidate['team']:.3g}, local {local})")
    if candidate["advantage"] is not None:
        said.append(f"   advantage {candidate['advantage']:.3g}")
    said.append(_indented(candidate["text"]))
    if candidate["note"]:
        said.append(_indented(f"note: {candidate['note']}"))
    if candidate["metrics"]:
        own = ", ".join(f"{name} {value:.3g}" for name, value in candidate["metrics"].items())
        said.append(_indented(f"metrics: {own}"))
    for number, ran in enumerate(candidate["programs"]):
        said.append(f"   program {number} ended: {ran['end']}")
        said += [_indented(ran[name], 6) for name in ("stdout", "stderr") if ran[name]]
    return "\n".join(said)


def _indented(text: str, by: int = 3) -> str:
    return "\n".join(" " * by + line for line in _spelt(text).split("\n"))


def _spelt(text: str) -> str:
    """Returns a text whose control characters are spelt out: nothing that was said moves the cursor."""
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return safe
