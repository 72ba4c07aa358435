"""AT-GRPO for teams of LLM agents, in JAX.

One training step, in the names of the folders and modules:

    tasks -> rollout (tokens, engines, sandbox) -> credit -> update (batch, loss, learner)
          -> engines (push, gate) -> run (metrics, checkpoint) -> next step

Words, each with one meaning:

    instance     a problem of a task, named by its split and number
    episode      one play of an instance, from its first turn to its end
    turn         one round of an episode, in which each role of the workflow speaks once
    role         who speaks: a name, a prompt, a part of the reward
    policy       parameters that speak for one role or several
    team         all roles, and which policy speaks for which
    sample       the tokens that an engine drew once, with their log-probabilities
    candidate    a sample with its text, reward and outcome; one of K from the same prompt and state
    group        the K candidates of one (turn, role) of an episode
    executed     the group's candidate whose state the episode goes on from
    reward       alpha * team + local: what all roles share, and what one role earned
    advantage    a candidate's reward relative to its group
    address      where a sample belongs (seed, step, instance, episode, turn, role, k); it fixes the noise
    minibatch    the groups of one optimizer step
    row          T tokens: prompts, each once, and after each the answers to it; groups are packed in rows
    micro-batch  B rows that are computed at once; a minibatch is A of them
    engine       who draws samples, with weights that were pushed to it
    push         gives an engine new weights of a policy; they have a version
    gate         the check that an engine holds the weights that were pushed
    warm start   supervised steps on demonstrations, before training
    architecture what a model is, as its config.json says; how it is computed is apart from that
    window       how many tokens a layer sees, itself included

Axis suffixes on array names. A file with letters of its own lists them at its top:

    G groups    K candidates    A micro-batches    B rows    T tokens in a row    P prompt tokens
    V vocabulary    D model width    F MLP width    L layers
    N query heads    M key/value heads    H head size
"""

from atgrpo_jax.version import __version__ as __version__
