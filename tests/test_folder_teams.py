"""Which model folder speaks for which role, where a team is played and not trained."""

import dataclasses
import json

import pytest
from fakes import CharTokenizer, Longest
from reference import SIZES, make, make_tokenizer

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder_teams import cast, played
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tokens import tiny_file
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer

ROLES = ("maker", "tester", "judge")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "small", "foreign"):
        options = SIZES | {"vocab_size": 300, "num_key_value_heads": 2}
        make(place / name, "Qwen3", options | ({"num_hidden_layers": 1} if name == "small" else {}))
        make_tokenizer(place / name)
    path = place / "foreign" / "tokenizer.json"
    about = json.loads(path.read_text())
    vocab = about["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(about))
    return place


def given(sharing="shared", **fields):
    team = Team(sharing, roles={"tester": {"max_tokens": 3}}, alpha=0.5)
    return Experiment(Longest(Workflow(order=ROLES)), team, warm_start=None, **fields)


BY_POLICY = {"maker": "full:hand", "tester": "full:hand", "judge": "lora"}


@pytest.mark.parametrize(
    ("sharing", "text", "found"),
    [
        ("shared", "/m/a", ["/m/a", "/m/a", "/m/a"]),
        ("shared", "maker=/m/a,tester=/m/b,judge=/m/a", ["/m/a", "/m/b", "/m/a"]),
        (BY_POLICY, "hand=/m/a,judge=/m/b", ["/m/a", "/m/a", "/m/b"]),
        ("shared", "shared=/m/a", ["/m/a", "/m/a", "/m/a"]),
        ("shared", "/m/x=1/a", ["/m/x=1/a"] * 3),
    ],
)
def test_folders_are_named_by_role_or_policy(sharing, text, found):
    assert cast(given(sharing), "--model", text) == dict(zip(ROLES, found, strict=True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("maker=a,judge=b", "--model names no folder for tester; write ROLE=FOLDER for each role"),
        (
            "maker=a,chief=b",
            "--model: there is no role or policy chief; there are maker, tester, judge",
        ),
        ("hand=a,tester=b,judge=a", "--model: tester is named twice"),
        ("maker=a,b", "--model=maker=a,b: expected one value, or NAME=VALUE,NAME=VALUE"),
    ],
)
def test_what_is_wrong_with_the_names_is_said(text, says):
    with pytest.raises(ConfigError, match=says):
        cast(given(BY_POLICY), "--model", text)


def test_a_team_has_a_policy_for_each_folder_and_keeps_what_roles_say(models):
    x = given("full")
    team = played(x, [cast(x, "--model", f"maker={models}/a,tester={models}/small,judge={models}/a")])
    assert team.policies == ("maker", "tester") and team.team.policy("judge") == "maker"
    assert team.pretrained == {"maker": f"{models}/a", "tester": f"{models}/small"}
    assert [team.architecture(name).layers for name in team.policies] == [3, 1]
    assert team.of_role("tester").sampling.max_tokens == 3 and team.team.alpha == 0.5
    assert team.tokenizer == FolderTokenizer(f"{models}/a")


def test_one_folder_plays_all_roles_by_one_policy(models):
    x = given("full")
    team = played(x, [cast(x, "--model", f"{models}/a")])
    assert team.policies == ("shared",) and team.team.policy("judge") == "shared"


def test_roles_share_a_policy_only_if_they_do_in_both_teams(models):
    x = given()
    one = cast(x, "--model", f"{models}/a")
    other = cast(x, "--against", f"maker={models}/b,tester={models}/b,judge={models}/a")
    team = played(x, [one, other])
    assert [team.team.policy(role) for role in ROLES] == ["maker", "maker", "judge"]
    with pytest.raises(RunError, match=r"Architecture.layers = 3, but 1 by the config.json of .*/small"):
        played(x, [one, cast(x, "--against", f"{models}/small")])


def test_folders_with_other_ids_are_refused(models):
    x = given()
    with pytest.raises(RunError, match="foreign/tokenizer.json gives other ids than"):
        played(x, [cast(x, "--model", f"maker={models}/a,tester={models}/foreign,judge={models}/a")])


def test_the_gin_files_tokenizer_says_how_folders_are_asked(models):
    own = FolderTokenizer(f"{models}/b", chat_template="{{ messages[0].content }}<|end|>", thinking=None)
    x = dataclasses.replace(given(), tokenizer=own)
    team = played(x, [cast(x, "--model", f"{models}/a")])
    assert team.tokenizer == dataclasses.replace(own, folder=f"{models}/a")


def test_a_vocabulary_that_is_too_small_is_one_short_line(models):
    says = r"Experiment.model: shared has a vocabulary of 9, smaller than the tokenizer's \d+"
    with pytest.raises(ValueError, match=rf"^{says}$"):
        given(model=Architecture(vocab_size=9))


def test_an_adapter_is_refused_with_advice(models, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    x = given()
    with pytest.raises(RunError, match=r"holds an adapter .*; merge it .* \(export --merge writes"):
        played(x, [cast(x, "--model", str(tmp_path))])


def test_a_partner_has_no_folder(models):
    partner = Partner("http://127.0.0.1:1/v1", "theirs")
    x = dataclasses.replace(given(), team=Team(partners={"judge": partner}))
    team = played(x, [cast(x, "--model", f"maker={models}/a,tester={models}/b")])
    assert team.policies == ("maker", "tester") and team.team.partners == {"judge": partner}


@pytest.fixture
def tiny(tmp_path):
    """Two exported folders of a run with a tiny tokenizer."""
    for name in ("a", "b"):
        make(tmp_path / name, "Qwen3", SIZES | {"vocab_size": 300, "num_key_value_heads": 2})
        tiny_file.write(TinyTokenizer(("north", "ö\n")), tmp_path / name)
    return tmp_path


def test_a_tiny_tokenizer_is_that_of_the_folder(tiny):
    x = given()
    team = played(x, [cast(x, "--model", f"maker={tiny}/a,tester={tiny}/b,judge={tiny}/a")])
    assert team.tokenizer == TinyTokenizer(("north", "ö\n")) != x.tokenizer


def test_tiny_tokenizers_that_differ_are_refused(tiny):
    tiny_file.write(TinyTokenizer(("south",)), tiny / "b")
    x = given()
    with pytest.raises(RunError, match="/b has another tokenizer than .*/a; a team shares one"):
        played(x, [cast(x, "--model", f"maker={tiny}/a,tester={tiny}/b,judge={tiny}/a")])


@pytest.mark.parametrize(
    "text", ['{"words": "north"}', '{"words": ["a", 1]}', '{"words": [], "more": 1}', "{}", '{"words": [""]}']
)
def test_a_file_that_is_no_tiny_tokenizer_is_named(tiny, text):
    (tiny / "a" / tiny_file.NAME).write_text(text)
    x = given()
    with pytest.raises(RunError, match=r"/a/tiny_tokenizer.json: .*; export the policy again"):
        played(x, [cast(x, "--model", f"{tiny}/a")])


def test_a_tokenizer_of_ones_own_speaks_for_a_folder_without_one(tiny, capsys):
    (tiny / "a" / tiny_file.NAME).unlink()
    x = dataclasses.replace(given(), tokenizer=(own := CharTokenizer()))
    assert played(x, [cast(x, "--model", f"{tiny}/a")]).tokenizer is own
    assert f"{tiny}/a has no tokenizer; that of the gin files speaks for it" in capsys.readouterr().err
    x = given()
    with pytest.raises(ConfigError, match="there is no tokenizer.json"):
        played(x, [cast(x, "--model", f"{tiny}/a")])
