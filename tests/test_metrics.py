import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atgrpo_jax.metrics import MetricsWriter
from atgrpo_jax.run_folder import RunFolder


def test_a_resumed_run_takes_the_place_of_the_steps_that_it_repeats(tmp_path):
    """In TensorBoard; metrics.jsonl is cut by whoever resumes."""
    folder = RunFolder(tmp_path)
    for first, steps in ((0, (0, 1, 2, 3)), (2, (2, 3))):
        writer = MetricsWriter(folder, first)
        for step in steps:
            writer.write(step, {"rollout/success": first + step / 4, "loss": 1.0})
        writer.close()
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert events.Tags()["scalars"] == ["rollout/success", "loss"]
    found = [(event.step, event.value) for event in events.Scalars("rollout/success")]
    assert found == [(0, 0.0), (1, 0.25), (2, 2.5), (3, 2.75)]
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines[0] == {"step": 0, "loss": 1.0, "rollout/success": 0.0} and len(lines) == 6


def test_a_full_disk_names_the_file(tmp_path, limited_file_size):
    folder = RunFolder(tmp_path)
    writer = MetricsWriter(folder, first=0)
    limited_file_size(1)
    with pytest.raises(OSError) as raised:
        writer.write(0, {"a": 1.0})
    writer.close()
    assert raised.value.filename == str(folder.metrics) and folder.metrics.read_bytes() == b""
