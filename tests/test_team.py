import pytest

from atgrpo_jax.team import Team


def test_sharing():
    roles = ("scout", "mover")
    assert Team().policies(roles) == ("shared",)
    assert Team("full").policies(roles) == ("mover", "scout")
    mixed = Team({"scout": "x", "mover": "x", "judge": "y"})
    assert mixed.policies((*roles, "judge")) == ("x", "y")
    assert mixed.policy("mover") == "x"


@pytest.mark.parametrize("sharing", [{"scout": "x"}, {"scout": "x", "mover": "x", "ghost": "x"}])
def test_a_mapping_must_name_exactly_the_roles(sharing):
    with pytest.raises(ValueError, match=r"Team\.sharing = .* exactly the roles scout, mover"):
        Team(sharing).policies(("scout", "mover"))


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"sharing": "lora"}])
def test_refuses(wrong):
    with pytest.raises(ValueError, match=f"Team.{next(iter(wrong))}"):
        Team(**wrong)
