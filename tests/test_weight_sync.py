import pytest
from fakes import ScriptedEngine

from atgrpo_jax.errors import RunError
from atgrpo_jax.weight_sync import check_gap, push


def test_a_push_sets_the_version_of_every_policy():
    engine = ScriptedEngine({})
    push(engine, {"a": {}, "b": {}}, 7)
    assert engine.version("a") == engine.version("b") == 7


def test_a_push_that_is_not_taken_is_an_error():
    class Deaf(ScriptedEngine):
        def push_weights(self, policy, params, version):
            pass

    with pytest.raises(RunError, match="reports version 0 of policy a after a push of version 7"):
        push(Deaf({}), {"a": {}}, 7)


@pytest.mark.parametrize("gap", [0.02, float("nan"), float("inf")])
def test_a_gap_above_the_limit_stops_the_run(gap):
    check_gap("a", 0.01, 0.01)
    with pytest.raises(RunError, match="policy a: sampler and learner logprobs of the same tokens differ by"):
        check_gap("a", gap, 0.01)
