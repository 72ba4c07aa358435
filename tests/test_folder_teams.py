"""Which model folder speaks for which role, where a team is played and not trained."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, Longest
from reference import SIZES, make, make_tokenizer, ours

from atgrpo_jax.common import buckets
from atgrpo_jax.common.errors import ConfigError, RunError, UserError
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.hf.adapters import digest_of, save_adapter
from atgrpo_jax.models.lora import LoraConfig, init_adapter, merge
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.exporting import Export
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.folder_teams import bases, cast, played, team_weights
from atgrpo_jax.run.team_learner import TeamLearner
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
    team = played(x, [cast(x, "--model", f"maker={models}/a,tester={models}/small,judge={models}/a")], {})
    assert team.policies == ("maker", "tester") and team.team.policy("judge") == "maker"
    assert team.pretrained == {"maker": f"{models}/a", "tester": f"{models}/small"}
    assert [team.architecture(name).layers for name in team.policies] == [3, 1]
    assert team.of_role("tester").sampling.max_tokens == 3 and team.team.alpha == 0.5
    assert team.tokenizer == FolderTokenizer(f"{models}/a")


def test_one_folder_plays_all_roles_by_one_policy(models):
    x = given("full")
    team = played(x, [cast(x, "--model", f"{models}/a")], {})
    assert team.policies == ("shared",) and team.team.policy("judge") == "shared"


def test_roles_share_a_policy_only_if_they_do_in_both_teams(models):
    x = given()
    one = cast(x, "--model", f"{models}/a")
    other = cast(x, "--against", f"maker={models}/b,tester={models}/b,judge={models}/a")
    team = played(x, [one, other], {})
    assert [team.team.policy(role) for role in ROLES] == ["maker", "maker", "judge"]
    with pytest.raises(RunError, match=r"Architecture.layers = 3, but 1 by the config.json of .*/small"):
        played(x, [one, cast(x, "--against", f"{models}/small")], {})


def test_folders_with_other_ids_are_refused(models):
    x = given()
    with pytest.raises(RunError, match="foreign/tokenizer.json gives other ids than"):
        played(x, [cast(x, "--model", f"maker={models}/a,tester={models}/foreign,judge={models}/a")], {})


def test_the_gin_files_tokenizer_says_how_folders_are_asked(models):
    own = FolderTokenizer(f"{models}/b", chat_template="{{ messages[0].content }}<|end|>", thinking=None)
    x = dataclasses.replace(given(), tokenizer=own)
    team = played(x, [cast(x, "--model", f"{models}/a")], {})
    assert team.tokenizer == dataclasses.replace(own, folder=f"{models}/a")


def test_a_vocabulary_that_is_too_small_is_one_short_line(models):
    says = r"Experiment.model: shared has a vocabulary of 9, smaller than the tokenizer's \d+"
    with pytest.raises(ValueError, match=rf"^{says}$"):
        given(model=Architecture(vocab_size=9))


def adapter(folder, base, named, seed=0, digest="", rank=4):
    """A PEFT folder beside ``base``, whose adapter does something. Returns the adapter."""
    model, params = ours(base)
    fresh = init_adapter(params, jax.random.key(seed), rank, model.family.adapted)
    made = jax.tree.map(lambda leaf: leaf + 0.1, fresh)  # b is not zero
    save_adapter(str(folder), made, LoraConfig(rank, 8.0), model.family, named, base_digest=digest)
    return made


def cast_of(x, **folders):
    return cast(x, "--model", ",".join(f"{role}={folder}" for role, folder in folders.items()))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    return jax.tree.structure(one) == jax.tree.structure(other)


def test_adapters_speak_on_their_base_and_share_it(models, tmp_path, capsys):
    _, params = ours(models / "a")
    digest = digest_of(params)
    made = {
        role: adapter(tmp_path / role, models / "a", f"{models}/a", seed, digest)
        for seed, role in enumerate(("maker", "tester"))
    }
    x = given()
    team = cast_of(x, maker=tmp_path / "maker", tester=tmp_path / "tester", judge=f"{models}/b")
    under = bases([team], None)
    assert under == dict.fromkeys((f"{tmp_path}/maker", f"{tmp_path}/tester"), f"{models}/a")
    found = played(x, [team], under)
    assert found.initial_names == ("base", "judge") and found.lora == LoraConfig(4, 8.0)
    assert found.pretrained == {"base": f"{models}/a", "judge": f"{models}/b"}
    weights = team_weights(TeamLearner(found), found, team, under)
    assert list(weights) == ["judge", "maker", "tester"] and weights["judge"].adapter is None
    assert weights["maker"].params is weights["tester"].params and weights["maker"].scale == 2.0
    assert same(weights["maker"].params, params) and same(weights["judge"].params, ours(models / "b")[1])
    assert all(same(weights[role].adapter, own) for role, own in made.items())
    assert capsys.readouterr().err == ""


def test_one_adapter_plays_all_roles(models, tmp_path):
    adapter(tmp_path / "one", models / "a", f"{models}/a")
    x = given("full")
    team = cast(x, "--model", f"{tmp_path}/one")
    found = played(x, [team], bases([team], None))
    assert found.policies == ("shared",) and found.initial_name("shared") == "base"
    assert found.tokenizer == FolderTokenizer(f"{models}/a")  # the adapter's folder has none


def test_a_whole_model_against_adapters_is_their_base_with_an_adapter_that_does_nothing(models, tmp_path):
    adapter(tmp_path / "one", models / "a", f"{models}/a")
    x = given()
    one, other = cast(x, "--model", f"{tmp_path}/one"), cast(x, "--against", f"{models}/b")
    under = bases([one, other], None)
    found = played(x, [one, other], under)
    weights = team_weights(TeamLearner(found), found, other, under)["shared"]
    assert same(weights.params, ours(models / "b")[1])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(weights.adapter))


def test_a_base_is_found_beside_the_adapter_or_in_the_working_directory_or_is_given(
    models, tmp_path, monkeypatch
):
    for name, base in {"beside": "../under", "here": "under", "lost": "/no/such", "unnamed": ""}.items():
        adapter(tmp_path / name, models / "a", base)
    found = {name: [{"maker": f"{tmp_path}/{name}"}] for name in ("beside", "here", "lost", "unnamed")}
    with pytest.raises(ConfigError, match=r"beside holds an adapter, and its base, .*/under, is not here; "):
        bases(found["beside"], None)
    shutil.copytree(models / "a", tmp_path / "under")
    assert bases(found["beside"], None) == {f"{tmp_path}/beside": f"{tmp_path}/under"}
    with pytest.raises(ConfigError, match=r"here holds an adapter, and its base, under, is not here; "):
        bases(found["here"], None)
    monkeypatch.chdir(tmp_path)
    assert bases(found["here"], None) == {f"{tmp_path}/here": "under"}
    for name, said in {"lost": "/no/such", "unnamed": "which it does not name"}.items():
        with pytest.raises(ConfigError, match=rf"its base, {said}, is not here; name .* --base=FOLDER"):
            bases(found[name], None)
        assert bases(found[name], "under") == {f"{tmp_path}/{name}": "under"}
    with pytest.raises(ConfigError, match=rf"--base=x is not needed \({tmp_path}/under\); leave it out"):
        bases(found["beside"], "x")
    with pytest.raises(ConfigError, match=r"--base=x is not needed \(no folder holds an adapter\)"):
        bases([{"maker": f"{models}/a"}], "x")


def test_adapters_and_their_base_may_be_in_a_bucket(models, tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where the copies are
    made = adapter(tmp_path / "one", models / "a", "../under", digest=digest_of(ours(models / "a")[1]))
    for folder, name in ((tmp_path / "one", "one"), (models / "a", "under")):
        for file in folder.iterdir():
            buckets.write(bucket / name / file.name, file.read_bytes())
    x = given()
    team = cast(x, "--model", f"{bucket}/one")
    under = bases([team], None)
    assert under == {f"{bucket}/one": f"{bucket}/under"}
    found = played(x, [team], under)
    weights = team_weights(TeamLearner(found), found, team, under)["shared"]
    assert same(weights.adapter, made) and same(weights.params, ours(models / "a")[1])


def test_a_base_with_other_numbers_is_told(models, tmp_path, capsys):
    adapter(tmp_path / "one", models / "a", "/no/such", digest=digest_of(ours(models / "a")[1]))
    params = ours(models / "a")[1]
    params["embedding"] = params["embedding"].at[0, 0].add(1e-6)
    hf.save(str(tmp_path / "moved"), params, str(models / "a"))
    x = given()
    team = cast(x, "--model", f"{tmp_path}/one")
    for base, says in ((f"{models}/a", False), (f"{tmp_path}/moved", True)):
        under = bases([team], base)
        found = played(x, [team], under)
        team_weights(TeamLearner(found), found, team, under)
        told = f"{base} has other numbers than {tmp_path}/one was trained on" in capsys.readouterr().err
        assert told == says


def test_adapters_that_do_not_go_together_are_refused(models, tmp_path):
    x = given()
    adapter(tmp_path / "a", models / "a", f"{models}/a")
    adapter(tmp_path / "b", models / "b", f"{models}/b")
    adapter(tmp_path / "rank", models / "a", f"{models}/a", rank=2)
    adapter(tmp_path / "small", models / "small", f"{models}/small")
    for other, says in {
        "b": r"adapters of one team are on one base, not on .*/a and .*/b; export --merge",
        "rank": r"not .*/a of rank 4, alpha 8 and .*/rank of rank 2, alpha 8; export --merge",
        "small": r"Architecture.layers = 3, but 1 by the config.json of .*/small",
    }.items():
        team = cast_of(x, maker=tmp_path / "a", tester=tmp_path / other, judge=tmp_path / "a")
        with pytest.raises(UserError, match=says):
            played(x, [team], bases([team], None))
    with pytest.raises(RunError, match=r"holds an adapter .*; merge it"):  # no adapter on an adapter
        adapter(tmp_path / "on", models / "a", f"{tmp_path}/b")
        (tmp_path / "b" / "model.safetensors").touch()
        team = cast(x, "--model", f"{tmp_path}/on")
        played(x, [team], bases([team], None))


def test_a_partner_has_no_folder(models):
    partner = Partner("http://127.0.0.1:1/v1", "theirs")
    x = dataclasses.replace(given(), team=Team(partners={"judge": partner}))
    team = played(x, [cast(x, "--model", f"maker={models}/a,tester={models}/b")], {})
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
    team = played(x, [cast(x, "--model", f"maker={tiny}/a,tester={tiny}/b,judge={tiny}/a")], {})
    assert team.tokenizer == TinyTokenizer(("north", "ö\n")) != x.tokenizer


def test_a_tiny_tokenizer_may_be_beside_an_adapter_or_in_its_base(tiny):
    adapter(tiny / "with", tiny / "a", "../a")
    adapter(tiny / "without", tiny / "a", "../a")
    tiny_file.write(TinyTokenizer(("north", "ö\n")), tiny / "with")
    x = given()
    team = cast_of(x, maker=tiny / "with", tester=tiny / "without", judge=tiny / "with")
    assert played(x, [team], bases([team], None)).tokenizer == TinyTokenizer(("north", "ö\n"))
    tiny_file.write(TinyTokenizer(("south",)), tiny / "without")
    with pytest.raises(RunError, match="/without has another tokenizer than .*/with; a team shares one"):
        played(x, [team], bases([team], None))


def test_a_tiny_tokenizer_and_another_one_are_refused(tiny, models):
    x = given()
    for one, other in ((f"{tiny}/a", f"{models}/a"), (f"{models}/a", f"{tiny}/a")):
        with pytest.raises(RunError, match="/a has another tokenizer than .*/a; a team shares one"):
            played(x, [cast(x, "--model", f"maker={one},tester={other},judge={one}")], {})


def test_tiny_tokenizers_that_differ_are_refused(tiny):
    tiny_file.write(TinyTokenizer(("south",)), tiny / "b")
    x = given()
    with pytest.raises(RunError, match="/b has another tokenizer than .*/a; a team shares one"):
        played(x, [cast(x, "--model", f"maker={tiny}/a,tester={tiny}/b,judge={tiny}/a")], {})


@pytest.mark.parametrize(
    "text", ['{"words": "north"}', '{"words": ["a", 1]}', '{"words": [], "more": 1}', "{}", '{"words": [""]}']
)
def test_a_file_that_is_no_tiny_tokenizer_is_named(tiny, text):
    (tiny / "a" / tiny_file.NAME).write_text(text)
    x = given()
    with pytest.raises(RunError, match=r"/a/tiny_tokenizer.json: .*; export the policy again"):
        played(x, [cast(x, "--model", f"{tiny}/a")], {})


def test_a_tokenizer_of_ones_own_speaks_for_a_folder_without_one(tiny, capsys):
    (tiny / "a" / tiny_file.NAME).unlink()
    x = dataclasses.replace(given(), tokenizer=(own := CharTokenizer()))
    assert played(x, [cast(x, "--model", f"{tiny}/a")], {}).tokenizer is own
    assert f"{tiny}/a has no tokenizer; that of the gin files speaks for it" in capsys.readouterr().err
    x = given()
    with pytest.raises(ConfigError, match="there is no tokenizer.json"):
        played(x, [cast(x, "--model", f"{tiny}/a")], {})


def exported(x, place, merged=False, dtype=None, step=0):
    """Exports a team whose adapters have 2**-12 times ``step`` in b. Returns the folder and the weights."""
    learner = TeamLearner(x)
    initial = learner.weights(learner.initial())

    def weights(number):
        def moved(ab):
            return {"a": ab["a"], "b": np.full(ab["b"].shape, number * 2.0**-12, np.float32)}

        found = dict(initial)
        for name in learner.adapted:
            layers = initial[name].adapter.items()
            adapter = {key: {name: moved(ab) for name, ab in layer.items()} for key, layer in layers}
            found[name] = initial[name]._replace(adapter=adapter)
        return found

    folder = RunFolder(place / "run")
    run = types.SimpleNamespace(experiment=x, learner=learner, weights=weights, folder=folder)
    Export(run, step, place / "out", merged, dtype, lambda folder: None).write()
    return place / "out", weights(step)


def origins(models, place, kind):
    """The run's tokenizer, which ends samples at more than it names itself, and the folder it starts from."""
    for name in ("own", "start"):
        shutil.copytree(models / "small", place / name)
    (place / "own" / "generation_config.json").write_text('{"eos_token_id": 5, "top_p": 0.9}')
    tokenizer = FolderTokenizer(str(place / "own"))
    if kind == "nowhere":
        return tokenizer, None
    if kind == "its own folder":
        return tokenizer, str(place / "own")
    left = {"without a tokenizer": ("tokenizer.json",), "without a template": ("chat_template.jinja",)}
    for name in left[kind]:
        (place / "start" / name).unlink()
    if kind == "without a tokenizer":
        (place / "start" / "chat_template.jinja").write_text("of no tokenizer here")
    return tokenizer, str(place / "start")


@pytest.mark.parametrize("sharing", ["shared", "lora:shared"])
@pytest.mark.parametrize("kind", ["its own folder", "nowhere", "without a tokenizer", "without a template"])
def test_an_exported_folder_asks_and_ends_as_the_run_did(kind, sharing, models, tmp_path):
    tokenizer, start = origins(models, tmp_path, kind)
    assert tokenizer.stop_ids == (256, 5)
    model = hf.architecture(f"{models}/small")
    out, _ = exported(given(sharing, tokenizer=tokenizer, pretrained=start, model=model), tmp_path)
    assert (out / "base_of_adapters").exists() == (kind == "nowhere" and sharing != "shared")
    for folder in out.iterdir():
        assert FolderTokenizer(str(folder)).digest() == tokenizer.digest()
        said = json.loads((folder / "generation_config.json").read_text())
        assert said["eos_token_id"] == [256, 5] and ("top_p" in said) == (kind == "its own folder")
        if (folder / "config.json").exists():
            assert hf.end_ids(str(folder)) == {256, 5}
            # Some servers read this file alone.
            assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [256, 5]
        assert f'AutoTokenizer.from_pretrained("{folder.name}")' in (folder / "README.md").read_text()
    x = given(tokenizer=tokenizer)
    casts = [cast(x, "--model", f"{out}/shared")]
    assert played(x, casts, bases(casts, None)).tokenizer.folder == f"{out}/shared"


def test_a_merged_adapter_is_rounded_once(models, tmp_path, capsys):
    """Its base may be bfloat16, which cannot hold what an adapter adds to it."""
    small = f"{models}/small"
    x = given("lora:one", pretrained=small, model=hf.architecture(small), tokenizer=FolderTokenizer(small),
              compute=Compute(param_dtype="bfloat16"))  # fmt: skip
    out, weights = exported(x, tmp_path, merged=True, dtype="float32", step=1)
    base, adapter, scale = weights["one"]
    _, params = ours(out / "one")
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), base)
    jax.tree.map(np.testing.assert_array_equal, params, merge(wide, adapter, scale))
    kernels = sum(params["layer_0"][name]["kernel"].size for name in adapter["layer_0"])
    share = kernels / sum(leaf.size for leaf in jax.tree.leaves(params))
    said = f"{share:.1%} of its numbers were changed by training; as float32, nothing is rounded"
    assert capsys.readouterr().out.splitlines()[-1] == f"one, step 1 against step 0: {said}"
