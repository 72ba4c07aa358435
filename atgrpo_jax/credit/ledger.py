"""Says where a step's signal, tokens and gradient go: the ledger of each role.

Nothing of it is used for training. docs/ledger.md lists all names and what they mean. Axis letters: G
groups, K candidates of a group.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from atgrpo_jax.common.metric_names import of_role
from atgrpo_jax.common.types import Episode, Group, Sample
from atgrpo_jax.credit.groups import Credited

# (lengths_GK, mask_GK) -> the weight of every token of a candidate in the loss of all these groups.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Table(NamedTuple):
    """All groups that policies of ours drew, as arrays. Columns of missing candidates are 0."""

    roles_G: np.ndarray
    policies_G: np.ndarray
    updated_G: np.ndarray  # whether this step updates its policy
    first_G: np.ndarray  # whether it is of an episode's first turn
    signal_G: np.ndarray  # whether some candidate is trained
    tokens_G: np.ndarray  # drawn by all candidates, trained or not
    nats_G: np.ndarray  # -logprob of all these tokens, in the distributions that they were drawn from
    texts_G: np.ndarray  # how many candidates have a text
    identical_G: np.ndarray  # whether all texts are equal
    mass_GK: np.ndarray  # |advantage| * tokens of the trained candidates
    pull_GK: np.ndarray  # the same * their weight in the loss; 0 for policies that are not updated


def ledger(
    episodes: Sequence[Episode],
    credited: Sequence[Credited],
    *,
    weigh: Weigh,
    updated: Collection[str],
    turns: int,
) -> dict[str, float]:
    """Returns the ledger of a step, as metrics of its roles.

    The pull of a candidate is |advantage| * tokens * weight, where weight is that of each of its
    tokens in the loss, if all groups of a policy that have a signal were one minibatch. At the first
    update, where the ratio is 1, it is the sum over its tokens of |d loss / d logprob|. So the share of
    a role in the pull of its policy says whose words the gradient is about. It is no norm of
    gradients of parameters, and knows no clipping, no correction, and no KL or entropy term.

    Partners count in none of it, but what they say can be repeated.

    Args:
      credited: all groups of the episodes, in any order.
      weigh: gives tokens their weights in the loss.
      updated: the policies that this step updates. Those of others give no gradient.
      turns: the most turns of an episode. If there are several, the first one is told apart from
        the later ones.
    """
    drawn = [item for item in credited if not item.group.by_partner]
    if not drawn:
        return {}
    table = _table(drawn, weigh, updated)
    repeated = _repeats(episodes)
    comparable = table.texts_G >= 2
    metrics: dict[str, float] = {}
    if comparable.any():
        metrics["groups/identical"] = _share(table.identical_G[comparable])
    for role in sorted(set(table.roles_G.tolist())):
        own_G = table.roles_G == role
        policy_G = table.policies_G == table.policies_G[own_G][0]
        values = _of_role(table, own_G)
        if own_G.sum() < policy_G.sum():  # others share the policy
            values |= _gradient_share(table, own_G, policy_G)
        if turns > 1:
            for name, rows_G in (("first", own_G & table.first_G), ("later", own_G & ~table.first_G)):
                found = _counts(table, rows_G) | _gradient_share(table, rows_G, policy_G)
                values |= {f"{name}/{key}": value for key, value in found.items()}
        shares = {of: _share(said) for (by, of), said in sorted(repeated.items()) if by == role}
        metrics |= of_role(role, values, repeats=shares)
    return metrics


def _of_role(table: _Table, own_G: np.ndarray) -> dict[str, float]:
    """Returns what is said of a role over all turns."""
    values = _counts(table, own_G)
    if values["drawn_tokens"]:
        values["drawn_entropy"] = float(table.nats_G[own_G].sum()) / values["drawn_tokens"]
    useful = own_G & table.signal_G
    if useful.any():
        values["tokens_per_signal"] = values["drawn_tokens"] / float(useful.sum())
    comparable = own_G & (table.texts_G >= 2)
    if comparable.any():
        values["identical"] = _share(table.identical_G[comparable])
    if table.updated_G[own_G].any():
        values["advantage_mass"] = float(table.mass_GK[own_G].sum())
    squares_G = (table.pull_GK**2).sum(1)
    pulling = comparable & (squares_G > 0)
    if pulling.any():
        effective_G = table.pull_GK[pulling].sum(1) ** 2 / squares_G[pulling]
        values["effective_candidates"] = float(effective_G.mean())
    return values


def _counts(table: _Table, rows_G: np.ndarray) -> dict[str, float]:
    values = {"groups": float(rows_G.sum()), "drawn_tokens": float(table.tokens_G[rows_G].sum())}
    return values | ({"signal": _share(table.signal_G[rows_G])} if rows_G.any() else {})


def _gradient_share(table: _Table, rows_G: np.ndarray, policy_G: np.ndarray) -> dict[str, float]:
    """Returns the share of some groups in the pull of their policy; nothing if it has none."""
    whole = float(table.pull_GK[policy_G].sum())
    return {"gradient_share": float(table.pull_GK[rows_G].sum()) / whole} if whole else {}


def _share(flags: Sequence[bool] | np.ndarray) -> float:
    return float(np.mean(flags))


def _table(drawn: Sequence[Credited], weigh: Weigh, updated: Collection[str]) -> _Table:
    size = max(len(item.mask_K) for item in drawn)
    lengths_GK = np.zeros((len(drawn), size), np.int64)
    mask_GK = np.zeros((len(drawn), size), bool)
    advantages_GK = np.zeros((len(drawn), size))
    nats_G = np.zeros(len(drawn))
    texts = []
    for g, item in enumerate(drawn):
        candidates = item.group.candidates
        lengths_GK[g, : len(candidates)] = [len(c.sample.tokens) for c in candidates]
        mask_GK[g, : len(candidates)] = item.mask_K
        advantages_GK[g, : len(candidates)] = item.advantages_K
        nats_G[g] = sum(-logprob for c in candidates for logprob in _drawn_logprobs(c.sample))
        texts.append([c.text for c in candidates if c.sample.drawn])
    mass_GK = np.where(mask_GK, np.abs(advantages_GK) * lengths_GK, 0.0)
    policies_G = np.array([item.group.origin.policy for item in drawn])
    pull_GK = np.zeros_like(mass_GK)
    for policy in updated:
        rows_G = policies_G == policy
        if rows_G.any():
            pull_GK[rows_G] = mass_GK[rows_G] * weigh(lengths_GK[rows_G], mask_GK[rows_G])
    keys = [item.group.origin.key for item in drawn]
    return _Table(
        np.array([key.role for key in keys]),
        policies_G,
        np.isin(policies_G, list(updated)),
        np.array([key.turn == 0 for key in keys]),
        mask_GK.sum(1) > 0,
        lengths_GK.sum(1),
        nats_G,
        np.array([len(said) for said in texts]),
        np.array([len(set(said)) == 1 for said in texts]),
        mass_GK,
        pull_GK,
    )


def _drawn_logprobs(sample: Sample) -> Sequence[float]:
    """Returns those of the distribution that each token was drawn from."""
    return sample.logprobs if sample.drawn_logprobs is None else sample.drawn_logprobs


def _repeats(episodes: Sequence[Episode]) -> dict[tuple[str, str], list[bool]]:
    """Returns, for pairs of roles, whether each executed answer of the first one is a repetition.

    It is compared, letter by letter, with what another role said just before it in the same turn, and,
    for a pair of a role with itself, with what the same speaker said the last time. Where several
    spoke at once before, nothing is compared with them: to choose an answer of theirs may be the task.
    """
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for episode in episodes:
        own: dict[str, str] = {}  # what each speaker said the last time
        before: list[Group] = []
        for _, stage in itertools.groupby(episode.groups, _place):
            spoke = [group for group in stage if group.chosen is not None]
            for group in spoke:
                key = group.origin.key
                if key.speaker in own:
                    found[key.role, key.role].append(_said(group) == own[key.speaker])
                if len(before) == 1:
                    other = before[0].origin.key
                    if other.turn == key.turn and other.role != key.role:
                        found[key.role, other.role].append(_said(group) == _said(before[0]))
            own |= {group.origin.key.speaker: _said(group) for group in spoke}
            before = spoke
    return found


def _place(group: Group) -> tuple[int, int]:
    return group.origin.key.turn, group.origin.key.stage


def _said(group: Group) -> str:
    assert group.chosen is not None
    return group.candidates[group.chosen].text
