"""Trainer, loop, policies, experiment, rollout, gate, warm start, checkpoint, run folder, config, evaluation, metrics."""

FAULTS = {
    ("run/stages.py", "test_trainer.py test_stages.py test_oracle.py test_policies.py"): [
        ("alpha=self.experiment.team.alpha", "alpha=1.0", "the team's alpha is not heard"),
        ("normalise=settings.normalise", 'normalise="std"', "normalisation is not heard"),
        ("baseline=settings.baseline", 'baseline="group"', "the baseline is not heard"),
        ("exclude=settings.exclude", 'exclude=("engine_error",)', "exclusions are not heard"),
        ("select=settings.select", 'select="mixed"', "selection is not heard"),
        (
            "learner.refer_to(learner.restore(self._checkpoints, 0))",
            "learner.refer_to(learner.restore(self._checkpoints, self.done))",
            "after a resume the reference is the step that the run goes on from",
        ),
        (
            "audit(group, team.version, self.experiment.seed)",
            "audit(group, group.origin.version, self.experiment.seed)",
            "any version passes the audit",
        ),
        (
            "(settings.candidates, 1) if settings.tree else (1, settings.candidates)",
            "(settings.candidates, 1) if settings.tree else (1, 1)",
            "one trajectory an instance",
        ),
        (
            "(settings.candidates, 1) if settings.tree else (1, settings.candidates)",
            "(settings.candidates, 1) if settings.tree else (settings.candidates, settings.candidates)",
            "trajectories branch",
        ),
        (
            'most = settings.instances if split == "test" else settings.validation_instances',
            "most = settings.instances",
            "validation has the test's number of instances",
        ),
        (
            "                split=split,\n",
            '                split="train",\n',
            "scores are of the training split",
        ),
        (
            "gate.push(self.engine, weights, team.version)",
            "gate.push(self.engine, weights, 0)",
            "pushes are all called 0",
        ),
        ("if every and (step % every == 0 or last):", "if every and last:", "no validation on the way"),
        (
            "if step % self.experiment.checkpoint_every == 0 or step == self.experiment.steps:",
            "if step % self.experiment.checkpoint_every == 0:",
            "the last step is not saved",
        ),
        (
            "self._opened = opening.pop_all()",
            "self._opened = opening.pop_all()\n        opening.close()\n        self._opened = contextlib.ExitStack()",
            "nothing is closed at the end",
        ),
        (
            "        with contextlib.ExitStack() as opening:",
            "        opening = contextlib.ExitStack()\n        if True:",
            "a start that fails leaves the engine open",
        ),
        (
            "        self._complete = team\n        return record",
            "        return record",
            "a stop saves an older team",
        ),
    ],
    ("rollout/rollouts.py", "test_trainer.py test_stages.py"): [
        (
            "train_indices(step, self._instances)",
            "train_indices(1, self._instances)",
            "all steps train on the same instances",
        ),
        (
            'play_all(self._player, step, "train"',
            'play_all(self._player, step, "test"',
            "training on the test split",
        ),
    ],
    ("run/loop.py", "test_trainer.py test_stages.py test_policies.py"): [
        ("proof = stages.sync(team)", "proof = {}", "the engine never gets new weights"),
        (
            "    stages.engine.release()",
            "    _ = stages.engine.release",
            "the update frees what the engine draws from",
        ),
        (
            "range(stages.done + 1, experiment.steps + 1)",
            "range(stages.done + 1, experiment.steps)",
            "the last step is left out",
        ),
        ("stages.checkpoint(step, team)\n", "pass\n", "nothing is saved on the way"),
    ],
    ("rollout/rollout.py", "test_stages.py test_trainer.py"): [
        (
            "Request(policy, prompt_ids, addresses, sampling)",
            "Request(policy, prompt_ids[:-1], addresses, sampling)",
            "the engine is asked for another prompt than is recorded",
        ),
        (
            "Request(policy, prompt_ids, addresses, sampling)",
            "Request(policy, prompt_ids, addresses[::-1], sampling)",
            "samples are at each other's addresses",
        ),
        (
            "addresses = tuple(Address(seed, key, k) for k in range(candidates))",
            "addresses = tuple(Address(0 * seed + 1, key, k) for k in range(candidates))",
            "the samples are another run's",
        ),
    ],
    ("run/team_learner.py", "test_policies.py test_oracle.py test_trainer.py test_stages.py"): [
        ("gate.check_gap(policy", "(lambda *given: None)(policy", "sampler and learner are not compared"),
        (
            "and experiment.loss.correction is None:",
            "and experiment.loss.correction is not None:",
            "compared where they may differ",
        ),
        ("count=experiment.loss.minibatches", "count=1", "minibatches are not heard"),
        ("epochs=experiment.loss.epochs", "epochs=1", "epochs are not heard"),
        (
            'seed_of("minibatches", experiment.seed, step)',
            'seed_of("minibatches", experiment.seed)',
            "one order for all steps",
        ),
        ("aggregate=experiment.loss.aggregate", 'aggregate="candidate"', "the aggregate is not heard"),
        (
            "constant=experiment.rollout.sampling.max_tokens",
            "constant=16",
            "the divisor is not that of the rollout",
        ),
        ("self.reference.get(policy)", "None", "the KL term is left out"),
        (
            "items[item.group.origin.policy].append(item)",
            "items[experiment.policies[0]].append(item)",
            "one policy gets all groups",
        ),
        (
            "return TeamState(states, team.base, team.version + 1), metrics",
            "return team._replace(version=team.version + 1), metrics",
            "updates are thrown away",
        ),
        (
            "return TeamState(states, team.base, team.version + 1), metrics",
            "return TeamState(states, team.base, team.version), metrics",
            "new weights keep the old version",
        ),
        (
            "experiment.team.updated(step, experiment.task.workflow.order)",
            "experiment.policies",
            "frozen policies are trained",
        ),
        (
            "temperature = experiment.rollout.sampling.temperature",
            "temperature = 1.0",
            "updates are at temperature 1",
        ),
        ("experiment.team.rates.get(policy, 1.0)", "1.0", "rates are not heard"),
        ("most = experiment.loss.correction\n", "most = None\n", "correction is not heard"),
        ("base = jax.tree.map(jnp.copy, base)", "pass", "the base is the array of a trained policy"),
        (
            "key = experiment.architecture(initial), adapter, mesh",
            "key = adapter, mesh",
            "models of other sizes share a learner",
        ),
        ('self._key("init", initial)', 'self._key("init", "")', "all random policies start the same"),
        (
            "return jax.random.key(seed_of(what, self._experiment.seed, name) % 2**32)",
            "return jax.random.key(0)",
            "the seed is not heard at the start",
        ),
        ("check_same_ids(self._experiment.tokenizer, folder)", "pass", "another tokenizer's folder is taken"),
        (
            "rate, reference, team.base) for batch",
            "rate, reference) for batch",
            "adapters are trained on nothing",
        ),
        (
            'updates.check(f"step {step}, policy {policy}", states[policy])',
            "pass",
            "numbers that are not finite go on",
        ),
    ],
    ("run/experiment.py", "test_config.py test_train.py"): [
        (
            'CHANGEABLE = ("steps", "checkpoint_every", "keep_checkpoints")',
            'CHANGEABLE = ("steps", "checkpoint_every", "keep_checkpoints", "seed")',
            "a run goes on with another seed",
        ),
        ('tree == (self.credit.baseline == "group")', "True", "baselines of one member are accepted"),
        (
            "size is None or size >= self.tokenizer.vocab_size",
            "True",
            "a vocabulary smaller than the tokenizer's",
        ),
        ("self.batch.rows % rows == 0,", "True,", "rows that the mesh does not divide"),
    ],
    ("rollout/rollout.py", "test_rollout.py test_rollout_faults.py test_trainer.py"): [
        (
            "if taken.done and (not workflow.parallel or key is keys[-1]):",
            "if taken.done:",
            "parallel turns are cut short",
        ),
        ('"solved" if taken.solved else "ended"', '"solved"', "every end is success"),
        (
            'return finish(workflow.turns, "turn_limit")',
            'return finish(workflow.turns, "solved")',
            "the turn limit is success",
        ),
        ("state = taken.state\n", "pass\n", "what is executed changes nothing"),
        ("taken = steps[group.chosen]", "taken = steps[0]", "the first is executed"),
        (
            "outcome.value not in self.exclude",
            "outcome.value in self.exclude",
            "exclusion is the other way round",
        ),
        (
            'Outcome.TRUNCATED if sample.finish == "length" else step.outcome',
            "step.outcome",
            "truncation goes unseen",
        ),
        (
            'if any(run.end == "crash" for run in runs):',
            "if False:",
            "a failing sandbox is the candidate's fault",
        ),
        ('seed_of("select", self.seed, key.path())', 'seed_of("select", self.seed)', "ties go to one place"),
        (
            'seed_of("select", self.seed, key.path())',
            'seed_of("select", key.path())',
            "ties do not know the seed",
        ),
        ("self.team.alpha, seed)", "1.0, seed)", "alpha is not heard in selection"),
        (
            "Address(seed, key, k) for k in range(candidates)",
            "Address(seed, key, 0) for k in range(candidates)",
            "all siblings have one address",
        ),
        (
            "range((step - 1) * instances, step * instances)",
            "range(step, step + instances)",
            "steps share instances",
        ),
        (
            "for i in indices for e in range(episodes)",
            "for e in range(episodes) for i in indices",
            "results are in another order",
        ),
        (
            "policy = self.team.policy(key.role)",
            "policy = self.team.policy(self.task.workflow.order[0])",
            "all roles speak by one policy",
        ),
    ],
    ("engines/gate.py", "test_weight_sync.py"): [
        ("if engine.version(policy) != version:", "if False:", "a version that was not taken"),
        (
            "if not gap <= limit:\n        raise",
            "if not gap >= limit:\n        raise",
            "the limit is the other way round",
        ),
        (
            "min(margins.values()) < -WRONG_WEIGHTS_Z",
            "min(margins.values()) < -1e9",
            "an engine with other weights is not named",
        ),
        ("elif not gap <= limit:", "elif False:", "unknown weights pass"),
        ("elif spread < FALSE_ALARM:", "elif False:", "top-p passes"),
        ("min(known) > KEPT_RATIO * new", "False", "a kept cache is not named"),
        (
            "corrected = correct and verdict.cause == UNKNOWN",
            "corrected = correct",
            "correction forgives everything",
        ),
        (
            "Sampling(self._temperature, max_tokens=1)",
            "Sampling(1.0, max_tokens=1)",
            "the gate draws at temperature 1",
        ),
        (
            "logprobs_PV[:PROMPTS] for name",
            "logprobs_PV for name",
            "new prompts are compared with the last push's",
        ),
    ],
    ("update/warm_start.py", "test_warm_start.py"): [
        (
            "tokenizer.digest(), batch, seed, source,",
            "tokenizer.digest(), batch, source,",
            "the seed is not in the name",
        ),
        (
            "tokenizer.digest(), batch, seed, source,",
            "tokenizer.digest(), batch, seed,",
            "the folder is not in the name",
        ),
        (
            "tokenizer.digest(), batch, seed, source,",
            "batch, seed, source,",
            "the tokenizer is not in the name",
        ),
        (
            "tokenizer.digest(), batch, seed, source,",
            "tokenizer.digest(), seed, source,",
            "the batch is not in the name",
        ),
        ("task, team.sharing,", "team.sharing,", "the task is not in the name"),
        ("task, team.sharing,", "task,", "how weights are shared is not in the name"),
        (
            "        config, optimizer,\n        sorted((name, m",
            "        config,\n        sorted((name, m",
            "the optimizer is not in the name",
        ),
        (
            'hash_bytes(repr(dataclasses.replace(config, cache_dir="")) + repr(made_from[1:]))',
            "hash_bytes(repr(made_from[1:]))",
            "the warm start's own settings are not in the name",
        ),
        ("warmup=config.warmup,", "warmup=0,", "no warm-up"),
        ("learning_rate=config.learning_rate,", "", "the rate is the training's"),
        (
            "items.setdefault(group.origin.policy, [])",
            'items.setdefault("shared", [])',
            "one policy is shown everything",
        ),
    ],
    ("run/folder.py", "test_run_folder.py test_policies.py"): [
        (
            "fcntl.LOCK_EX | fcntl.LOCK_NB",
            "fcntl.LOCK_SH | fcntl.LOCK_NB",
            "two processes train in one folder",
        ),
        ("mtime=0", "mtime=None", "episodes' bytes depend on the clock"),
        ('"executed": group.chosen', '"executed": 0', "the first is called executed"),
        ('"advantage": float(advantage)', '"advantage": 0.0', "advantages are not recorded"),
        ("records[: step + 1]", "records[:step]", "the last step's record is lost"),
        ("int(found[1]) > step", "int(found[1]) >= step", "the last step's episodes are lost"),
        ('record["step"] != step:', "False:", "steps that are missing go unseen"),
    ],
    ("run/gin_config.py", "test_config.py test_gin_files.py"): [
        (
            "if name not in self.values.macros_used and not self._offered(name):",
            "if False:",
            "a misspelt macro passes",
        ),
        ("if macro not in self._offers:", "if True:", "no file may set a macro for another one"),
        (
            'if scope and not set(scope.split("/")) <= self.values.scopes_used:',
            "if False:",
            "a misspelt scope passes",
        ),
        ("for binding in bindings:", "for binding in ():", "bindings of the command line are not heard"),
        ("for name in files:", "for name in files[:1]:", "the second file is not read"),
        ("if path in self._reading:", "if False:", "a file includes itself"),
        ("if not value.called:", "if False:", "a reference without brackets passes"),
        ("statement.location.line_num if lines else None", "None", "errors name no line"),
    ],
    ("run/gin_names.py", "test_config.py test_gin_wiring.py"): [
        ("if len(modules) == 1 or name in homes]", "if len(modules) == 1]", "a word of two files is none"),
        ("if field.init]\n    found", "]\n    found", "fields that are computed can be set"),
        ("cutoff=0.6)", "cutoff=0.99)", "no name is near"),
    ],
    ("run/gin_values.py", "test_config.py test_gin_wiring.py"): [
        ("for depth in range(len(scopes) + 1):", "for depth in range(1):", "values of scopes are lost"),
        (
            "return dataclasses.replace(like, **given) if same else",
            "return",
            "a wired part forgets the field's default",
        ),
        ("if name in within:", "if False:", "a macro that is its own value never ends"),
        (
            "found or settings.values(), key=lambda setting: setting.number",
            "settings.values(), key=lambda setting: setting.number",
            "an error names a file that is not at fault",
        ),
    ],
    ("run/gin_wiring.py", "test_gin_wiring.py"): [
        ("if len(free) > 1:", "if False:", "a part that fits two fields takes the first"),
        ("if len(rivals) > 1:", "if False:", "the first of two candidates is taken"),
        (
            "later.value is None or setting.source != later.source",
            "True",
            "a choice hides values of its own file",
        ),
        ("setting.number < later.number and", "True and", "values after None are dropped"),
        ("            dropped += inner\n", "", "the parts of a dropped part are in the way"),
        (
            "        _refer(values, field.above, field.owner)\n",
            "        pass\n",
            "a part of a default value is not reached",
        ),
    ],
    ("run/gin_writing.py", "test_config.py"): [
        (
            "for field in dataclasses.fields(part) if field.init]",
            "for field in dataclasses.fields(part) if field.init and field.default is dataclasses.MISSING]",
            "defaults are not rendered",
        ),
    ],
    ("rollout/evaluation.py", "test_evaluation.py"): [
        ("reshape(instances, episodes)", "reshape(episodes, instances).T", "scores of other instances"),
        (
            "play_all(player, step, split, range(instances), episodes, on_episode)",
            'play_all(player, step, "train", range(instances), episodes, on_episode)',
            "evaluation plays training problems",
        ),
        (
            "engine_propose(engine, sampling, 1, seed)",
            "engine_propose(engine, sampling, 2, seed)",
            "evaluation draws two",
        ),
        (
            "[episode.solved for episode in played]",
            '[episode.end != "turn_limit" for episode in played]',
            "an end is success",
        ),
        ("failed_I = K - self.solved_IK.sum(1)", "failed_I = self.solved_IK.sum(1)", "pass@k of failures"),
        ("centre = p + z * z / (2 * n)", "centre = p", "Wilson's centre is that of Wald"),
        (
            "score.solved_IK.mean(1) - other.solved_IK.mean(1)",
            "other.solved_IK.mean(1) - score.solved_IK.mean(1)",
            "the difference is the other way round",
        ),
        ("int((gain_I > 0).sum()),", "int((gain_I >= 0).sum()),", "ties are called better"),
        ("top_k=0, top_p=1.0, min_p=0.0)", ")", "evaluations explore as a rollout does"),
        (
            "temperature=own,",
            "temperature=rollout.temperature,",
            "evaluations draw at the rollout's temperature",
        ),
    ],
    ("run/metrics.py", "test_metrics.py test_policies.py test_train.py"): [
        (
            "np.mean([e.solved for e in episodes])",
            'np.mean([e.end == "ended" for e in episodes])',
            "success is something else",
        ),
        ("status=SessionLog.START", "status=SessionLog.STOP", "repeated steps stay in TensorBoard"),
        (
            "own = [c for c in candidates if c.origin.key.role == role]",
            "own = list(candidates)",
            "roles' metrics are the team's",
        ),
    ],
    ("rollout/team.py", "test_team.py"): [
        ("(step - 1) // self.alternate", "step // self.alternate", "turns are off by a step"),
        ("if policy not in self.frozen]", "]", "frozen policies are trained"),
        ("before == kind", "True", "one policy is full and an adapter"),
        ('"lora" if spec.startswith("lora") else "full"', '"full"', "adapters are full policies"),
    ],
    ("run/stages.py", "test_trainer.py test_stages.py test_policies.py test_train.py"): [
        ("self.folder.rewind(latest)", "self.folder.rewind(-1)", "a resumed run forgets what was before"),
        ("self.done, team = found\n", "_, team = found\n", "a resumed run begins with step 1"),
    ],
    ("run/loop.py", "test_trainer.py test_policies.py test_report.py"): [
        ("signal, learned, proof, seconds", "learned, proof, seconds", "groups' metrics are lost"),
        ("stages.checkpoint_now()", "pass", "a run that is stopped saves nothing"),
    ],
    ("rollout/rollout.py", "test_rollout.py test_rollout_faults.py"): [
        ("state_digest = digest(state)", "state_digest = digest(None)", "states have no names"),
    ],
    ("run/checkpoint.py", "test_checkpoint.py test_trainer.py"): [
        ('if about["identity"] != self._identity:', "if False:", "another config's checkpoint is taken"),
        ("steps_in(self._path) - {0})", "steps_in(self._path))", "the start is not kept"),
        ("[: -self._keep]", "[: -9]", "all are kept"),
        ('if about.get("step") != step:', "if False:", "another step's checkpoint is taken"),
        ('if about["base"] != self._base_digest:', "if False:", "another base's adapters are taken"),
    ],
    ("common/files.py", "test_run_folder.py test_checkpoint.py"): [
        ("os.replace(temporary, path)", "path.write_bytes(data[:-1])", "files are cut short"),
    ],
    ("common/metric_names.py", "test_trainer.py test_oracle.py"): [
        (
            'f"{OF_POLICY}/{_level(policy)}/{name}"',
            'f"{OF_POLICY}/{name}"',
            "policies' metrics overwrite one another",
        ),
    ],
    ("tools/probing/parts.py", "test_probe.py"): [
        (
            'fault = f"{type(error).__name__}: {one_line(error)}"',
            "fault = one_line(error)",
            "a fault without its kind",
        ),
        (
            "return Result(part, time.perf_counter() - began, None, fault, traceback.format_exc())",
            "return Result(part, time.perf_counter() - began, Found(fault, {}))",
            "a part that fails is fine",
        ),
    ],
    ("tools/probing/page.py", "test_probe.py"): [
        (
            "[result.part for result in results if result.found is None]",
            "[result.part for result in results if result.trace]",
            "only unknown faults count",
        ),
        ('return text.replace("|", "\\\\|")', "return text", "a fault's text breaks the table"),
    ],
    ("tools/probing/kernels.py", "test_probe.py"): [
        ("if not apart <= limit:", "if apart > limit:", "a kernel that gives nan is fine"),
        ("return out, pull(d_out)", "return out, d_out", "gradients are not compared"),
        ("return BFLOAT16 * size", "return 2 * BFLOAT16 * size", "bfloat16 may be twice as far apart"),
    ],
    ("tools/probing/bucket.py", "test_probe.py"): [
        ("if path.read_bytes() != data:", "if not path.read_bytes():", "what is read is not compared"),
        ("                path.unlink()", "                pass", "objects are left"),
        ("if listed != wanted:", "if not listed:", "a listing may lack objects"),
    ],
    ("tools/probing/speed.py", "test_probe.py"): [
        ("compiles.count - count)", "0)", "later compilations are not seen"),
    ],
    ("planning/devices.py", "test_probe.py"): [
        ("begins[max(found, key=len)]", "begins[min(found, key=len)]", "v5e is taken for v5p"),
    ],
}
