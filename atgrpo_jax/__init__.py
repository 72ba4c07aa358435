"""AT-GRPO for teams of LLM agents, in JAX.

One training step, in the names of the modules:

    task instances -> rollout -> groups -> advantages -> batch -> learner (loss) -> weight_sync

A *team* of *roles* takes turns on an *instance*. At every (turn, role) K *candidates* are drawn from
one prompt: a *group*. The best is executed; advantages are relative to the group.

Axis suffixes on array names, everywhere:

    G groups    K candidates    A micro-batches    B rows    T tokens in a row    P prompt tokens
    C new tokens of a branch    V vocabulary    D model width    F MLP width
    N query heads    M key/value heads    H head size    L layers
"""

from atgrpo_jax.version import __version__ as __version__
