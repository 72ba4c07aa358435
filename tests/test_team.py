import pytest

from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.rollout.team import Team

ROLES = ("scout", "mover")
PARTNER = Partner("http://127.0.0.1:30000/v1", "m")


@pytest.mark.parametrize(
    ("sharing", "policies", "kinds"),
    [
        ("shared", ["shared", "shared"], "full"),
        ("full", ["scout", "mover"], "full"),
        ("lora", ["scout", "mover"], "lora"),
        ({"scout": "lora:x", "mover": "lora:x"}, ["x", "x"], "lora"),
        ({"scout": "full:x", "mover": "shared"}, ["x", "shared"], "full"),
    ],
)
def test_sharing(sharing, policies, kinds):
    team = Team(sharing)
    assert [team.policy(role) for role in ROLES] == policies
    assert team.policies(ROLES) == tuple(sorted(set(policies)))
    assert {team.kind(policy, ROLES) for policy in policies} == {kinds}


def test_a_mixture():
    roles = (*ROLES, "judge")
    team = Team({"scout": "lora", "mover": "full", "judge": "shared"})
    assert team.policies(roles) == ("mover", "scout", "shared")
    assert [team.kind(p, roles) for p in team.policies(roles)] == ["full", "lora", "full"]
    start = team.starting(roles)
    assert [start.policy(role) for role in roles] == ["base", "mover", "shared"]
    assert {start.kind(p, roles) for p in start.policies(roles)} == {"full"}


def test_who_is_updated():
    assert Team("full").updated(1, ROLES) == ("mover", "scout")
    assert Team("full", frozen=("mover",)).updated(1, ROLES) == ("scout",)
    turns = [Team("full", alternate=2).updated(step, ROLES) for step in range(1, 7)]
    assert turns == [("mover",), ("mover",), ("scout",), ("scout",), ("mover",), ("mover",)]
    assert Team("full", frozen=("mover",), alternate=1).updated(2, ROLES) == ("scout",)


def test_a_role_with_a_partner_has_no_policy():
    team = Team("full", partners={"mover": PARTNER})
    assert team.policies(ROLES) == ("scout",) and team.drawn(ROLES) == ("scout",)
    assert (team.policy("scout"), team.policy("mover")) == ("scout", "")
    assert team.updated(1, ROLES) == ("scout",)
    named = Team({"scout": "lora"}, partners={"mover": PARTNER})
    assert named.policies(ROLES) == ("scout",)
    start = named.starting(ROLES)
    assert start.policies(ROLES) == ("base",) and start.policy("mover") == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sharing": {"scout": "full"}}, r"Team\.sharing = .* exactly the roles scout, mover"),
        ({"sharing": {"scout": "full", "mover": "full", "ghost": "full"}}, "exactly the roles"),
        ({"sharing": {"scout": "full:x", "mover": "lora:x"}}, "policy x is both full and lora"),
        ({"frozen": ("ghost",)}, r"Team.frozen = \('ghost',\): the policies are shared"),
        ({"rates": {"ghost": 2.0}}, "Team.rates = .*: the policies are shared"),
        ({"frozen": ("shared",)}, "nothing is left to train"),
        ({"partners": {"ghost": PARTNER}}, "Team.partners = .*: the roles are scout, mover"),
        ({"partners": dict.fromkeys(ROLES, PARTNER)}, "nothing is left to train"),
        (
            {"partners": {"mover": PARTNER}, "sharing": dict.fromkeys(ROLES, "full")},
            "exactly the roles that have no partner: scout",
        ),
        ({"partners": {"mover": PARTNER}, "rates": {"mover": 2.0}}, "Team.rates = .*: the policies are sh"),
    ],
)
def test_roles_and_fields_must_match(fields, says):
    with pytest.raises(ValueError, match=says):
        Team(**fields).policies(ROLES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -1.0}, {"sharing": "adapters"}, {"sharing": "lora:"}, {"rates": {"shared": 0.0}},
        {"alternate": -1},
    ],
)  # fmt: skip
def test_refuses(wrong):
    with pytest.raises(ValueError, match=f"Team.{next(iter(wrong))}"):
        Team(**wrong)
