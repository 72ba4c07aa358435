"""Plans of shipped files where nothing is at hand, the hours of a run, and what would make it fit."""

import dataclasses
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from reference import SIZES, make, make_tokenizer

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.models.config import PRESETS, Compute, preset, published
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.planning import fitting, footprint, hours, times
from atgrpo_jax.planning.devices import DEVICES, HOST_LINK
from atgrpo_jax.planning.plans import Asked, Plan
from atgrpo_jax.planning.stand_ins import AROUND, Pieces, StandIns
from atgrpo_jax.planning.workload import Workload, workload_of
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.gin_config import gin_folder, load
from atgrpo_jax.run.team_learner import TeamLearner

SHIPPED = gin_folder()


def commands():
    """The gin files of the first command in the head of each shipped file, once."""
    found = {}
    for path in sorted(SHIPPED.rglob("*.gin")):
        (command, *_) = re.findall(
            r"-m atgrpo_jax\.train((?:\\\n|[^\n])*)", path.read_text().split("\n\n")[0]
        ) or [""]
        files = tuple(re.findall(r"--gin_file=(\S+\.gin)\b", command))
        if files:
            found.setdefault(files, path)
        else:
            assert path.parent.name == "parts", path  # which are included, and no runs
    return found


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """An empty working directory, without a network."""
    monkeypatch.chdir(tmp_path)

    def refused(*args, **kwargs):
        raise AssertionError("a plan asks the network for nothing")

    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.parametrize("files", commands(), ids="+".join)
def test_every_shipped_run_is_planned_where_nothing_is(files, nothing):
    # The tests have eight devices.
    pod = ["FSDP = 8", "COPIES = 4", "ROWS = 8"] if "parts/pod.gin" in files else []
    plan = Plan(Asked(files, pod, device="h200"))
    lines = list(plan.lines())
    text = "".join(Path(SHIPPED / name).read_text() for name in files)
    assert plan.fits and not list(Path().iterdir())
    assert any(re.fullmatch(r"the whole run: (< )?[\d.,]+ hours, by .*", line) for line in lines)
    named = re.findall(r'^MODEL = "(.*)"', text, re.M) or ["smollm2-135m"] * ("_model.gin" in "".join(files))
    if named:
        assert lines[0] == "taken in place of what is not here:"
        assert f"  {named[-1]}: the published sizes of {named[-1].lower()}" in lines
    assert ("made-up problems" in "".join(lines)) == ("jsonl.gz" in text)


def test_there_are_commands_for_all_but_parts():
    assert len(commands()) > 40
    planned = {name for files in commands() for name in files}
    shipped = {str(path.relative_to(SHIPPED)) for path in SHIPPED.rglob("*.gin")}
    assert {name for name in shipped - planned if not name.startswith("parts/")} == set()


def test_a_model_that_files_leave_open_is_said(nothing):
    told = list(Plan(Asked(["paper/plan_path.gin"], device="h100")).lines())
    assert "  MODEL, which nothing sets: Qwen3-8B" in told
    told = list(Plan(Asked(["paper/plan_path.gin"], device="h100", preset="qwen3-0.6b")).lines())
    assert "  MODEL, which nothing sets: qwen3-0.6b" in told
    assert "  Qwen3-8B: the published sizes of qwen3-0.6b" in told


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("/models/Qwen3-0.6B-Base/", "qwen3-0.6b"),
        ("Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("Qwen3-80B", None),
        ("tiny", None),  # a size of ours, and no model that is published
        ("base", None),
    ],
)
def test_a_folder_is_called_after_a_published_model(folder, name):
    assert published(folder) == name


def test_every_preset_of_a_folder_is_called_after_itself():
    assert all(published(name) == name for name in PRESETS if name != "tiny")


def test_a_name_that_says_nothing_needs_a_preset(nothing):
    bindings = ['MODEL = "mine"']
    with pytest.raises(ConfigError, match=r"mine: there is no such folder.*--preset=NAME"):
        StandIns(None).load(["plan_model.gin"], bindings)
    stand_ins = StandIns("qwen3-0.6b")
    assert stand_ins.load(["plan_model.gin"], bindings).model == preset("qwen3-0.6b")
    assert "  mine: the published sizes of qwen3-0.6b" in stand_ins.report(None)


def test_what_is_here_is_read(tmp_path):
    make(tmp_path, "Qwen3", SIZES | {"vocab_size": 300, "num_key_value_heads": 2})
    make_tokenizer(tmp_path)
    bindings = [f'MODEL = "{tmp_path}"']
    for split in ("train", "validation", "test"):
        row = {"question": split, "answer": "1"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
        bindings.append(f'{split.upper()} = "{tmp_path / split}.jsonl"')
    files = ["paper/math.gin", "paper/shared.gin"]
    stand_ins = StandIns(None)
    assert stand_ins.load(files, bindings) == load(files, bindings)
    assert stand_ins.report(None) == [] and not stand_ins.unread


def test_one_file_that_is_not_here_is_enough_to_make_problems_up(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "a", "answer": "1"}))
    files = {
        "train": str(tmp_path / "a.jsonl"),
        "test": (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")),
    }
    stand_ins = StandIns(None)
    x = stand_ins.load(["math_checker.gin"], [f"math.Math.files = {files!r}"])
    assert x == load("math_checker.gin") and stand_ins.unread
    assert f"  {tmp_path / 'b.jsonl'}: made-up problems" in stand_ins.report(512)
    assert "  longest prompt, which no made-up problem shows: 512, as the engine takes" in stand_ins.report(
        512
    )


def test_a_longest_prompt_that_nobody_saw_counts(nothing):
    plan = Plan(Asked(["paper/math.gin", "paper/shared.gin"], device="h100"))
    assert plan.workload.longest_prompt == 8192 and plan.workload.longest_group == 8192 + 4 * 8192
    assert plan.workload.prompt < 300  # of made-up sums


def test_another_device_is_its_memory_and_has_no_times(nothing):
    known = Plan(Asked(["smoke.gin"], device="h200"))
    need = footprint.total(known.memory)
    for gb, fits in ((2 * need / 1e9, True), (0.5 * need / 1e9, False)):
        plan = Plan(Asked(["smoke.gin"], device_gb=gb))
        *lines, last = plan.lines()
        assert plan.fits is fits and plan.memory == known.memory
        assert lines[-1].endswith(": fits" if fits else ": does not fit")
        what = "times" if fits else "times, and what would fit,"
        assert last == f"{what} need the rates of a device that --device knows"
    for other in ({"hosts": 2}, {"compile": True}):
        with pytest.raises(ConfigError, match=f"--{next(iter(other))} needs a --device"):
            Asked(["smoke.gin"], device_gb=24, **other)


def test_pieces_by_hand():
    tokens = Pieces(100)
    text = "Reasoning, 12 (x_1)\n\n naïve 数学"
    # Reasoni ng , ␣ 1 2 ␣( x _ 1 ) ⏎⏎␣ naïve ␣数学
    assert len(tokens.prompt_ids([{"role": "user", "content": text}])) == AROUND + 14
    assert tokens.decode(tokens.answer_ids(text)) == text
    assert tokens.answer_ids(text)[-1:] == tokens.stop_ids


def hand():
    """Two roles and two turns of smoke.gin: prompts of 10 tokens, four answers of 2."""
    workload = Workload(
        groups=32, prompt=10, longest_prompt=12, new=2, candidates=4, longest_answer=2, longest_group=20,
        demonstrated=4, demonstration=3,
    )  # fmt: skip
    return load("smoke.gin"), workload


def test_a_warm_start_of_first_turns_has_their_groups_alone():
    x = load("quick.gin")
    first = dataclasses.replace(x, warm_start=dataclasses.replace(x.warm_start, turns=1))
    assert workload_of(first).demonstrated == 2 < workload_of(x).demonstrated  # a scout's and a mover's


def test_what_a_partner_says_in_demonstrations_is_not_cloned():
    x = load("quick.gin")
    partner = Partner(model="m", url="http://localhost:1/v1")
    half = dataclasses.replace(x, team=dataclasses.replace(x.team, partners={"scout": partner}))
    assert workload_of(half).demonstrated == workload_of(x).demonstrated / 2 > 0


def test_the_longest_group_of_a_warm_start_has_its_own_candidates():
    x = load("smoke.gin")
    one, four = (
        workload_of(dataclasses.replace(x, warm_start=dataclasses.replace(x.warm_start, candidates=k)))
        for k in (1, 4)
    )
    answer = one.longest_demonstrated - one.longest_prompt
    assert answer > 0 and four.longest_demonstrated == four.longest_prompt + 4 * answer


def test_hours_by_hand():
    """20 steps; validation before them, after 10 and after 20; test before and after."""
    x, workload = hand()
    device = dataclasses.replace(DEVICES["h100"], bandwidth=1e30)  # arithmetic alone
    parts = hours.parts(x, TeamLearner(x), workload, device, 0.5)
    rate = device.flops * 0.5
    vocab = x.tokenizer.vocab_size

    def flop(stage, **changes):
        changed = dataclasses.replace(workload, **changes)
        return times.work(x.model, Compute(), vocab, changed, changed.groups)[stage]

    assert parts["rollout"].seconds == pytest.approx(20 * flop("rollout") / rate)
    assert parts["update"].seconds == pytest.approx(20 * flop("update") / rate)
    episodes = 3 * 10 + 2 * 20
    scored = flop("rollout", groups=episodes * 2 * 2, candidates=1)
    assert parts["evaluation"].seconds == pytest.approx(scored / rate)
    assert parts["evaluation"].what == "3 x 10 episodes of validation, 2 x 20 of test, at most"
    cloned = 60 * flop("update", groups=8 * 4, candidates=4, new=3)
    assert parts["warm start"].seconds == pytest.approx(cloned / rate)
    lines = hours.report(x, TeamLearner(x), workload, device, 0.5)
    assert lines[0] == "the whole run: < 0.001 hours, by the figures above"
    total = 1e7 * sum(part.seconds for part in parts.values()) / 3600
    slow = dataclasses.replace(device, flops=device.flops / 1e7, bandwidth=device.bandwidth / 1e7)
    line = hours.report(x, TeamLearner(x), workload, slow, 0.5)[0]
    assert 0.01 < total < 100 and line == f"the whole run: {total:#.3g} hours, by the figures above"
    assert "50% of 989 TFLOP/s" in "".join(lines)


def test_a_run_without_warm_start_and_validation_has_fewer_parts():
    x, workload = hand()
    x = dataclasses.replace(x, warm_start=None, evaluation=dataclasses.replace(x.evaluation, every=0))
    parts = hours.parts(x, TeamLearner(x), workload, DEVICES["h100"], 0.4)
    assert list(parts) == ["rollout", "update", "evaluation"]
    assert parts["evaluation"].what == "2 x 20 of test, at most"


def test_turns_are_drawn_one_after_the_other():
    """By hand: 8 groups of 4 in each of two turns. Reading weights is all that takes time here."""
    x, workload = hand()
    device = dataclasses.replace(DEVICES["h100"], flops=1e30)

    def rollout(slots):
        own = dataclasses.replace(x, engine=dataclasses.replace(x.engine, slots=slots))
        return times.seconds(own, TeamLearner(own), workload, device, 0.5)["rollout"][1]

    assert rollout(8) == pytest.approx(4 * rollout(32))
    assert rollout(64) == rollout(32)  # more slots do not bring the next turn
    # Three validations and two tests follow each other, too; each fits into the slots.
    found = hours.parts(x, TeamLearner(x), workload, device, 0.5)["evaluation"].seconds
    assert found == pytest.approx(5 * rollout(64))


def test_rounds_and_what_is_played_on_count():
    """By hand: of four prompts (two roles, two turns) 3, 2, 1 and 0 come after one of its candidates."""
    x = load("smoke.gin")
    rollout = dataclasses.replace(x.rollout, least_signal=10, most_rounds=3)
    credit = dataclasses.replace(x.credit, counterfactual=0.5)
    plain = workload_of(x)
    more = workload_of(dataclasses.replace(x, rollout=rollout, credit=credit))
    played = x.rollout.instances * x.rollout.candidates * 6 // 2
    assert more == dataclasses.replace(plain, rounds=3, continued=played) and plain.rounds == 1
    device = DEVICES["h100"]
    one, three = (times.seconds(x, TeamLearner(x), workload, device, 0.4) for workload in (plain, more))
    for stage in ("rollout", "update"):
        assert three[stage][:2] == pytest.approx([3 * value for value in one[stage][:2]])
    alone = dataclasses.replace(plain, groups=played, candidates=1)
    drawn = times.seconds(x, TeamLearner(x), alone, device, 0.4)["rollout"]
    assert three[times.AFTER][:2] == pytest.approx([3 * value for value in drawn[:2]])
    assert f"3 rounds of {plain.groups} groups" in times.report(x, TeamLearner(x), more, device, 0.4)[0]
    once, thrice = (hours.parts(x, TeamLearner(x), workload, device, 0.4) for workload in (plain, more))
    assert {name for name in thrice if once.get(name) != thrice[name]} == {"rollout", times.AFTER, "update"}
    assert thrice[times.AFTER].what == "20 steps, at most"


def test_what_a_kl_term_compares_with_takes_memory_and_a_pass_forward():
    x, workload = hand()
    refers = dataclasses.replace(x, loss=dataclasses.replace(x.loss, kl=0.01))
    plain, more = (footprint.memory(own, TeamLearner(own), workload) for own in (x, refers))
    added = {name: size for name, size in more.items() if name not in plain}
    assert added == {"parameters that a KL term compares with, shared": plain["parameters, shared"]}
    three, four = (
        times.seconds(own, TeamLearner(own), workload, DEVICES["h100"], 0.4)["update"][0]
        for own in (x, refers)
    )
    assert four == pytest.approx(three * 4 / 3)


def updates(x, workload):
    """FLOP and seconds of a step's updates, and seconds of a step of the warm start."""
    policies, device = TeamLearner(x), DEVICES["h100"]
    flop, seconds, _ = times.seconds(x, policies, workload, device, 0.4)["update"]
    warm = hours.parts(x, policies, workload, device, 0.4)["warm start"].seconds
    return [flop, seconds, warm / x.warm_start.steps]


def test_every_epoch_is_an_update_and_the_warm_start_has_one():
    x, workload = hand()
    flop, seconds, warm = updates(x, workload)
    more = dataclasses.replace(x, loss=dataclasses.replace(x.loss, epochs=3))
    assert updates(more, workload) == pytest.approx([3 * flop, 3 * seconds, warm])


def test_the_warm_start_compares_with_nothing():
    x, workload = hand()
    refers = dataclasses.replace(x, loss=dataclasses.replace(x.loss, kl=0.01))
    assert updates(refers, workload)[2] == updates(x, workload)[2]


@pytest.mark.parametrize("team", [{"frozen": ("mover",)}, {"alternate": 2}], ids=str)
@pytest.mark.parametrize("sides", [1, 2])
def test_only_those_who_learn_in_a_step_are_updated(team, sides):
    """By hand: of two policies, each with half of the groups, one is updated. The warm start trains both."""
    x, workload = hand()
    x = dataclasses.replace(x, team=Team("full"), mesh=MeshConfig(policies=sides))
    one = dataclasses.replace(x, team=Team("full", **team))
    flop, seconds, warm = updates(x, workload)
    assert updates(one, workload) == pytest.approx([flop / 2, seconds / (2 / sides), warm])


def test_an_engine_draws_on_the_mesh_of_its_own():
    x, workload = hand()
    for device in (dataclasses.replace(DEVICES["h100"], flops=1e30), DEVICES["h100"]):
        own = dataclasses.replace(x, engine=dataclasses.replace(x.engine, mesh=MeshConfig(data=4)))
        here, there = (times.seconds(x, TeamLearner(x), workload, device, 0.4) for x in (x, own))
        assert there["update"] == here["update"]
        assert there["rollout"][:2] == pytest.approx([here["rollout"][0], here["rollout"][1] / 4])


def test_of_drawing_on_servers_nothing_is_said(nothing):
    servers = ["experiment.Experiment.engine = @sglang.SGLangConfig()"]
    plan = Plan(Asked(["smoke.gin"], servers, device="h100"))
    told = "\n".join(plan.lines())
    assert "  rollout    left out: SGLangConfig does not draw on the devices of this page" in told
    assert "  rollout and evaluations are left out: SGLangConfig does not draw" in told
    parts = hours.parts(plan.experiment, plan._policies, plan.workload, DEVICES["h100"], 0.4)
    assert list(parts) == ["update", "warm start"]


def test_tokens_end_a_run_if_they_are_drawn_before_its_last_step():
    """By hand: a step draws 32 groups of 4 answers of 2 tokens, and 5 more of 2; two rounds, twice that."""
    x, workload = hand()
    x = dataclasses.replace(x, tokens=3000)
    assert hours.last_step(dataclasses.replace(x, tokens=0), workload) == 20
    assert hours.last_step(x, workload) == 12  # 11.7
    assert hours.last_step(x, dataclasses.replace(workload, continued=5)) == 12  # 11.3
    assert hours.last_step(x, dataclasses.replace(workload, rounds=2)) == 6
    assert hours.last_step(dataclasses.replace(x, tokens=10**6), workload) == 20
    parts = hours.parts(x, TeamLearner(x), workload, DEVICES["h100"], 0.4)
    whole = hours.parts(dataclasses.replace(x, tokens=0), TeamLearner(x), workload, DEVICES["h100"], 0.4)
    assert parts["update"].seconds == pytest.approx(whole["update"].seconds * 12 / 20)
    assert parts["update"].what == "12 steps, which draw Experiment.tokens"
    assert parts["evaluation"].what.startswith("3 x 10 episodes")  # before, after 10 and after 12


def test_what_is_not_in_the_sum_of_hours_is_said():
    x, workload = hand()
    device = dataclasses.replace(DEVICES["h100"], flops=1e9, bandwidth=1e9)

    def said(x):
        return hours.report(x, TeamLearner(x), workload, device, 0.4)

    def total(x):
        return sum(part.seconds for part in hours.parts(x, TeamLearner(x), workload, device, 0.4).values())

    measured = dataclasses.replace(x.evaluation, influence_every=10)
    lines = said(dataclasses.replace(x, evaluation=measured))
    assert "  what roles' words change is measured 2 times, which is not in the sum" in lines
    beside = dataclasses.replace(x, max_lag=1)
    (line,) = (line for line in said(beside) if "max_lag" in line)
    assert line.endswith("on the same devices: both count in the sum") and said(beside)[0] == said(x)[0]
    engine = dataclasses.replace(x.engine, mesh=MeshConfig(), first_device=1)
    apart = dataclasses.replace(beside, engine=engine)
    (line,) = (line for line in said(apart) if "max_lag" in line)
    assert line.endswith("of rollout and update the longer one counts in the sum")
    parts = hours.parts(apart, TeamLearner(apart), workload, device, 0.4)
    shorter = min(parts["rollout"].seconds, parts["update"].seconds)
    words = hours._hours((total(apart) - shorter) / 3600)
    assert said(apart)[0] == f"the whole run: {words} hours, by the figures above"
    assert words != hours._hours(total(apart) / 3600)
    assert not any("sum" in line for line in said(x))


def test_offloaded_state_comes_and_goes_in_every_update():
    x, workload = hand()
    offload = dataclasses.replace(x, optimizer=dataclasses.replace(x.optimizer, offload=True))
    stays, moves = (
        times.seconds(own, TeamLearner(own), workload, DEVICES["h100"], 0.4)["update"][1]
        for own in (x, offload)
    )
    held = footprint.bytes_on_hosts(TeamLearner(offload).shapes)
    assert moves - stays == pytest.approx(2 * 2 * held / HOST_LINK)  # there and back, two minibatches


def test_what_sglang_jax_keeps_by_hand(nothing):
    """4,096 tokens of keys and values in two layers, with one head of 128 numbers; weights are shared."""
    memory = Plan(Asked(["smoke_sglang_jax.gin"])).memory
    assert memory["cache of sglang-jax, shared"] == 4096 * 2 * 2 * 128 * 4
    assert not any("copied" in name for name in memory)
    rounded = Plan(Asked(["smoke_sglang_jax.gin"], ['config.Compute.dtype = "bfloat16"'])).memory
    assert rounded["cache of sglang-jax, shared"] == 4096 * 2 * 2 * 128 * 2
    assert rounded["parameters copied for sglang-jax, shared"] == memory["parameters, shared"] / 2


# A model of 18 million parameters; of all that it takes, activations are most.
LARGE = """
include "smoke.gin"
experiment.Experiment.warm_start = None
config.Architecture.layers = 4
config.Architecture.width = 512
config.Architecture.mlp_width = 2048
config.Architecture.heads = 8
config.Architecture.kv_heads = 8
config.Architecture.head_size = 64
batch.BatchConfig.rows = 16
local.LocalEngineConfig.slots = 64
"""


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Returns a function for a plan of the large model on a device with so many bytes."""

    def plan(memory, extra="", **asked):
        file = tmp_path / f"{hash(extra)}.gin"
        file.write_text(LARGE + extra)
        monkeypatch.setitem(DEVICES, "small", dataclasses.replace(DEVICES["h100"], memory=memory))
        return Plan(Asked([str(file)], device="small", **asked))

    return plan


def room_for(plan):
    """The bytes of a device on which the plan just fits."""
    return footprint.total(plan.memory) * 12 / 11 + 1


def to_paste(said):
    (start,) = (i for i, line in enumerate(said) if "as lines for the end of a gin file" in line)
    return [line.strip() for line in said[start + 1 :] if line.startswith("  ")]


def test_what_fits_is_said_to(large):
    plan = large(room_for(large(1e12)))
    assert plan.fits and not any("cheapest" in line for line in plan.lines())


@pytest.mark.parametrize(
    ("share", "lines"),
    [
        (0.99, ["batch.BatchConfig.rows = 8"]),
        pytest.param(0.7, ["batch.BatchConfig.rows = 4"], marks=pytest.mark.thorough),
        pytest.param(
            0.45,
            [
                "local.LocalEngineConfig.slots = 16",
                "local.LocalEngineConfig.prompt_cache = 4096",
                "batch.BatchConfig.rows = 1",
                "batch.BatchConfig.row_tokens = 62",
            ],
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_the_cheapest_change_fits_once_it_is_pasted(large, share, lines):
    """All of these compute the same: fewer and shorter rows, and the engine draws less at once."""
    memory = share * room_for(large(1e12))
    plan = large(memory)
    assert not plan.fits
    said = list(plan.lines())
    assert to_paste(said) == lines
    again = large(memory, "\n".join(lines))
    assert again.fits
    assert f"then {footprint.total(again.memory) / 1e9:.3f} of" in said[-1]
    now, then = (own.search().seconds(own.experiment) for own in (plan, again))
    assert f"a step of {then:.3f} s at least, {then / now:.2f} times as long" in said[-1]


@pytest.mark.thorough
def test_what_changes_the_learning_comes_last_and_is_said(large):
    memory = 0.25 * room_for(large(1e12))
    said = list(large(memory).lines())
    lines = to_paste(said)
    assert lines[0] == 'team.Team.sharing = "lora"' and said[-1] == fitting.ADAPTERS
    assert large(memory, "\n".join(lines)).fits
    alone = [line for line in lines if "Team" not in line]
    assert not large(memory, "\n".join(alone)).fits


def test_a_mesh_that_was_a_flag_stays_one(large):
    memory = 0.5 * room_for(large(1e12))
    said = list(large(memory, mesh=MeshConfig(data=4)).lines())
    assert said[-2] == "the cheapest change that fits: --mesh=fsdp=4"
    assert large(memory, mesh=MeshConfig(fsdp=4)).fits


def test_changes_are_tried_on_the_mesh_of_the_flag(large):
    """The file's mesh has eight rows at once, which fewer rows would not be a multiple of."""
    files = "mesh.MeshConfig.fsdp = 8"
    memory = 0.7 * room_for(large(1e12, files, mesh=MeshConfig()))
    assert to_paste(list(large(memory, files, mesh=MeshConfig()).lines())) == ["batch.BatchConfig.rows = 4"]


def test_rows_are_those_of_a_mesh_that_deals_experts(large):
    experts = """
config.Architecture.family = "qwen3_moe"
config.Architecture.experts = @config.Experts()
config.Experts.count = 8
config.Experts.chosen = 2
config.Experts.width = 256
mesh.MeshConfig.expert = 4
"""
    memory = 0.97 * room_for(large(1e12, experts))
    lines = to_paste(list(large(memory, experts).lines()))
    assert lines == ["batch.BatchConfig.rows = 8"] and large(memory, experts + lines[0]).fits


def test_what_a_run_would_refuse_is_said_if_nothing_can_be_tried(large, monkeypatch):
    search = large(1e6).search()

    def refused(lines, mesh):
        raise ConfigError("rows must be a multiple of 7")

    monkeypatch.setattr(search, "_read", refused)
    lacks, nowhere, _ = fitting.report(search, flag=False)
    for line in (lacks, nowhere):
        assert line.endswith("A run would refuse each of them, e.g. rows must be a multiple of 7")


LORA = """
team.Team.sharing = "lora"
warm_start.WarmStartConfig.steps = 10
batch.BatchConfig.rows = 1
batch.BatchConfig.row_tokens = 64
local.LocalEngineConfig.slots = 1
local.LocalEngineConfig.prompt_cache = 1024
"""


def test_adapters_do_not_fit_where_the_warm_start_of_their_base_does_not(large):
    """Their steps alone would. The optimizer of the base may wait on the host."""
    run, without = large(1e12, LORA), large(1e12, LORA + "experiment.Experiment.warm_start = None\n")
    memory = (room_for(run) + room_for(without)) / 2
    need = footprint.total(without.memory) / 1e9
    plan = large(memory, LORA)
    assert not plan.fits and large(memory, LORA + "experiment.Experiment.warm_start = None\n").fits
    said = plan.lines()
    table = [next(said) for _ in range(len(plan.memory) + 4)]
    assert "optimizer, base, in the warm start" in "".join(table)
    assert table[-3].endswith("does not fit")
    assert table[-1] == f"  the steps after it take {need:.3f} GB, which fits"
    search = plan.search()
    offloaded = fitting.Change(("optimizer.OptimizerConfig.offload = True",), run.experiment.mesh)
    found = search._fits(offloaded)
    assert found is not None and found == footprint.total(large(memory, LORA + offloaded.lines[0]).memory)
    assert search._fits(fitting.Change((), run.experiment.mesh)) is None


@pytest.mark.thorough
def test_more_devices_are_named_if_nothing_fits_on_those_there_are(large):
    """A megabyte less than the least that one device can do with. Two hold half of the parameters each."""
    extra = """
team.Team.sharing = "lora"
config.Compute.dtype = "bfloat16"
objectives.LossConfig.correction = 2.0
"""
    search = large(1e6, extra).search()
    assert search.cheapest() is None
    least = footprint.total(search.least)
    memory = (least - 1e6) * 12 / 11
    said = list(large(memory, extra).lines())
    (lacks,) = (line for line in said if line.startswith("no change that was tried fits"))
    assert "Each device lacks 0.001 GB at least; most is taken by the head's logits" in lacks
    assert said[said.index(lacks) + 1].startswith("with 2 devices it fits, as lines")
    lines = to_paste(said)
    assert {"mesh.MeshConfig.fsdp = 2", "mesh.MeshConfig.tensor = 2"} & set(lines)
    assert large(memory, extra + "\n".join(lines)).fits


@pytest.mark.thorough
def test_what_is_missing_is_said_if_nothing_fits_anywhere(large):
    """The arrays of the head's logits alone take 0.201 GB."""
    said = list(large(0.1e9).lines())
    lacks, nowhere, otherwise = said[-3:]
    assert lacks.startswith("no change that was tried fits: fewer rows, remat, offload")
    assert nowhere.startswith("nor does it with more devices, up to 8. Each device lacks 0.")
    assert nowhere.endswith("most is taken by the head's logits and gradient, 0.201 GB")
    assert "rollout.RolloutConfig.max_tokens" in otherwise


@pytest.mark.slow
def test_the_command_in_an_empty_folder(tmp_path):
    """A model of 8B on eight TPU v5e, which hold its adapters; then what is said is pasted."""

    def plan(*flags):
        line = [sys.executable, "-m", "atgrpo_jax.plan", "--device=v5e", *flags]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)

    files = ["paper/plan_path.gin", "paper/shared.gin", "paper/qwen3_8b.gin"]
    large = plan(*files)
    assert large.returncode == 1 and "GB: does not fit" in large.stdout, large.stderr
    assert "Qwen3-8B: the published sizes of qwen3-8b" in large.stdout
    (tmp_path / "smaller.gin").write_text("\n".join(to_paste(large.stdout.splitlines())))
    smaller = plan(*files, "smaller.gin")
    assert smaller.returncode == 0 and "GB: fits" in smaller.stdout, smaller.stdout
    unknown = plan("plan_model.gin", '--gin_param=MODEL = "mine"')
    assert unknown.returncode == 2 and "--preset=NAME" in unknown.stderr
    assert unknown.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "told"), [(1063.4, "1,060"), (99.96, "100"), (0.0123, "0.0123"), (4e-4, "< 0.001")]
)
def test_hours_have_no_exponent(given, told):
    assert hours._hours(given) == told
