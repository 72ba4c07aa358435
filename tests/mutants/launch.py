"""launch/tpu.py: what is refused, what `watch` does, and what runs on the VMs."""

FAULTS = {
    ("../launch/tpu/table.py", "test_tpu_table.py test_tpu_watch.py"): [
        ("lambda s, p: 2 in s.exits", "lambda s, p: 3 in s.exits", "exit code 2 is started again"),
        ('s.job.wanted == "stop"', 's.job.wanted == "halt"', "a run that was stopped gets new machines"),
        (
            'return {"ready": "ready", "coming": "active"}.get(NODES.get(self.node.state, ""), "lost")',
            'return {"ready": "ready", "coming": "active"}.get(NODES.get(self.node.state, ""), "ready")',
            "VMs in a state that nobody knows are taken for READY",
        ),
        (
            '        if self.node is None:\n            return "lost"\n',
            '        if self.node is None:\n            return "active"\n',
            "a resource without VMs is waited for",
        ),
        ("and not s.halved", "", "a VM that begins again waits for ever for one that was stopped"),
        (
            "max(seen.silent) > patience",
            "min(seen.silent) > patience",
            "one VM that says nothing is not noticed",
        ),
        (
            "self.hosts[0] is not None and self.hosts[0].exit == 0",
            "any(host.exit == 0 for host in self.told)",
            "the run is done before host 0 has written everything",
        ),
        (
            "143 in s.exits and s.stopped <= p.stopped",
            "False",
            "a stop before the machines go away is taken for a person's",
        ),
        (
            "most = patience.failures + seen.job.excused",
            "most = patience.failures",
            "VMs that were prepared anew are replaced at once",
        ),
    ],
    ("../launch/tpu/watch.py", "test_tpu_watch.py"): [
        ("state.attempt == resource.attempt", "state.attempt >= 0", "what an older machine said is believed"),
        ("state.number == job.number", "state.number >= 0", "what an older run said is believed"),
        (
            "if state and state.since > job.rescued",
            "if state",
            "what a VM said before it was prepared anew is believed",
        ),
        (
            "self._patience.every * 2**self._refused",
            "self._patience.every",
            "machines are asked for without a longer pause",
        ),
    ],
    ("../launch/tpu/watch.py", "test_tpu_hours.py"): [
        (
            "if grown >= WORTH_H or (",
            "if (",
            "hours are written down when the machines are gone, and not before",
        ),
        (" or (not alive and grown > 0)", "", "the last minutes of machines are forgotten"),
        ("WORTH_H = 0.1 ", "WORTH_H = 0.0 ", "the job file is written at every look"),
    ],
    ("../launch/tpu/show.py", "test_tpu_watch.py"): [
        (
            "        if shown.endswith(text[4:end]):",
            "        if False:",
            "a long log is printed again at each look",
        ),
        ('if job.wanted != "stop":', "if True:", "a log is followed after a stop"),
        (
            "if waits and cloud.resource(job.name, job.zone) is not None:",
            "if waits:",
            "the log of machines that are deleted is followed",
        ),
    ],
    ("../launch/tpu/job.py", "test_tpu_watch.py"): [
        ("write(cloud, changed, generation)", "write(cloud, changed)", "a `delete` is written over"),
        (
            'found.kind != "changed" or not left',
            "True",
            "a job that somebody else writes is not written again",
        ),
    ],
    ("../launch/tpu/job.py", "test_tpu_hours.py test_tpu_resume.py"): [
        ("if found > self.hours.get(attempt, 0.0)", "", "an attempt loses hours"),
        ("(name, folder) != folder:", '(name, folder) == "":', "a model is taken for another one"),
        ('folder = address.rstrip("/")', "folder = address", "a model with a slash at its end has no name"),
    ],
    ("../launch/tpu/cli.py", "test_tpu_hours.py test_tpu_resume.py"): [
        ("hours=job.counted(seen).hours", "wanted=job.wanted", "`delete` counts no hours"),
        (
            "check_models(flags.model or job.models)",
            "tuple(flags.model) or job.models",
            "`run` checks no models",
        ),
    ],
    ("../launch/tpu/make.py", "test_tpu_resume.py"): [
        ("tier=flags.tier or base.tier", 'tier=flags.tier or "on-demand"', "a spot job goes on on demand"),
        (
            "for flag in before}",
            "for flag in ()}",
            "a job goes on without its network",
        ),
        (
            "base.project if flags.project is None else flags.project",
            'flags.project or ""',
            "a job goes on in another project",
        ),
        ("        if old != new:\n", "        if False:\n", "nobody is told what changes"),
        (
            "        checks.check_nothing_is_left(cloud.shell, before, job)\n",
            "        pass\n",
            "machines in the zone before are forgotten",
        ),
    ],
    ("../launch/tpu_host.sh", "test_tpu_vm.py"): [
        ("= stop ]; then systemctl stop", "= stop ]; then true", "a stop just before the start is not heard"),
        ('model="${model%/}"', "break", "a model with a slash at its end is not copied"),
        (
            'if grep -qsxF -e "$model" "$base/models/.$name"',
            'if [ -e "$base/models/.$name" ]',
            "a model of the same name is not copied",
        ),
    ],
    ("../launch/common.sh", "test_launch_venv.py"): [
        ('  if [ -z "$before" ] && [ -d "$venv" ]; then', "  if false; then", "half of an environment stays"),
        ('[ -z "$before" ] &&', "true &&", "what a person had in the folder is removed"),
        (
            'then set -- "$ATGRPO_PYTHON"; fi',
            "then set -- $ATGRPO_PYTHON; fi",
            "a path with a space is two Pythons",
        ),
        ('*) export "$given=$PWD/${!given}" ;;', "", "a relative environment is looked for elsewhere"),
    ],
    ("../launch/tpu/watch.py", "test_tpu_refusals.py"): [
        (
            "if seen.resource is not None and not seen.resource.ours:",
            "if False:",
            "machines of others are replaced",
        ),
    ],
    ("../launch/tpu/ask.py", "test_tpu_watch.py test_tpu_dry.py"): [
        ("attempt=job.attempt + 1", "attempt=job.attempt", "new machines have the attempt of the old ones"),
        (
            "if found is None and (cloud",
            "if True and (cloud",
            "new machines are asked for before the old ones are gone",
        ),
        ('    if job.wanted == "stop":\n        return\n', "", "machines are asked for after a `delete`"),
        (
            'newest is not None and newest.wanted == "stop"',
            "False",
            "machines that were asked for during a `delete` stay",
        ),
    ],
    ("../launch/tpu/checks.py", "test_tpu_refusals.py"): [
        ("if machine.type not in types:", "if False:", "a zone without the type is asked"),
        (
            "if place == here.upper() or here.startswith(WIDE.get(place, ())):",
            "if True:",
            "a bucket in another region is taken",
        ),
        ("if job.used_hours >= job.max_hours:", "if False:", "hours are not counted"),
    ],
    ("../launch/tpu/code.py", "test_tpu_refusals.py"): [
        ("if changed and not dirty:", "if False:", "uncommitted changes are sent"),
        ("    info.mtime = 0\n", "", "the same files have another digest each time"),
    ],
    ("../launch/hosts.sh", "test_launch_hosts.py"): [
        ('|| [ "${codes[host]}" -eq 2 ]', "", "the death of a host hides the error for people of another"),
        ("$((host * share)):$share", "0:$share", "all processes have the same GPUs"),
        ('"--host=$host"', '"--host=0"', "all processes are host 0"),
    ],
    ("../launch/slurm.sh", "test_launch_hosts.py"): [
        ("0 | 2) break", "0) break", "what people must mend is started again"),
        ("+ SLURM_JOB_ID % 4096", "", "all jobs of a node listen at one port"),
        ("for left in 2 1 0", "for left in 0", "a run that dies is not started again"),
    ],
    ("../launch/tpu/on_vm.py", "test_tpu_vm.py"): [
        (
            'newest.get("wanted", job["wanted"])',
            'job["wanted"]',
            "a stop during the installation is not heard",
        ),
        ('before.get("exit") in (0, 2)', 'before.get("exit") in (0,)', "a boot starts what people must mend"),
        ('128 + getattr(signal, f"SIG{status}", 0)', "1", "a signal is no exit code"),
        ("if code not in DONE:", "if True:", "a stop is a failure"),
        ("    lock.unlink()\n", "", "libtpu's lock stays"),
        ("if len(named) != vms:", "if False:", "a machine of which only some VMs are known trains"),
        ("f\"--host={vm['host']}\"", '"--host=0"', "all VMs are host 0"),
        ("{named[0]}", "{named[-1]}", "hosts look for host 0 on the last VM"),
    ],
}
