"""Sends records to an MLflow server, or writes them to a local database of MLflow."""

import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atgrpo_jax.common.checks import check_types
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tracking.tracker import COLUMNS, About, Row, library, refuse_secrets

# By its own settings it would try for minutes, and the run would wait.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_TABLES = "mlflow.loggedArtifacts"  # the tag by which its pages find tables
LONGEST_TAG = 5000  # letters; MLflow cuts longer ones off, older servers at so many. The files stay


@dataclasses.dataclass(frozen=True)
class MLflow:
    """User and password are in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as MLflow has it."""

    experiment: str = "atgrpo_jax"  # that the run appears in
    # http://..., or sqlite:///PATH. None is what MLFLOW_TRACKING_URI says, or else mlflow.db where you are.
    uri: str | None = None

    def __post_init__(self):
        check_types(self)
        refuse_secrets("MLflow.uri", self.uri, "MLFLOW_TRACKING_URI")

    def open(self, run: About) -> "_Run":
        library("mlflow", "mlflow")
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            client = library("mlflow.tracking", "mlflow").MlflowClient(tracking_uri=self.uri)
        except ImportError as error:
            raise RunError(f"{error.name} is not installed; pip install 'atgrpo_jax[mlflow]'") from error
        return _Run(client, run.key or self._created(client, run), run.settings)

    def _created(self, client: Any, run: About) -> str:
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        return client.create_run(experiment, run_name=run.name).info.run_id


class _Run:
    lag_s = 0.0

    def __init__(self, client: Any, key: str, settings: Mapping[str, Any]):
        self._client = client
        self._entities = library("mlflow.entities", "mlflow")
        self.key = key
        before = client.get_run(key)
        self._tables = _tables(before.data.tags.get(_TABLES, "[]"))
        client.update_run(key, status="RUNNING")
        texts = {_allowed(name): str(value)[:6000] for name, value in settings.items()}
        known = before.data.params
        params = [self._entities.Param(name, text) for name, text in texts.items() if name not in known]
        for some in _parts(params, 100):
            client.log_batch(key, params=some)
        for name, text in texts.items():
            if known.get(name, text) != text:  # MLflow's parameters never change
                client.set_tag(key, f"now.{name}", text)
        self.where = f"{client.tracking_uri}, experiment {before.info.experiment_id}, run {key}"

    def log(self, step: int, record: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_allowed(name), value, now, step) for name, value in record.items()]
        for some in _parts(metrics, 1000):
            self._client.log_batch(self.key, metrics=some)

    def table(self, step: int, split: str, rows: Sequence[Row]) -> None:
        # The form of ``mlflow.log_table``, which would need pandas.
        file = f"episodes/{split}_{step:06d}.json"
        self._client.log_text(self.key, json.dumps({"columns": COLUMNS, "data": rows}), file)
        table = {"path": file, "type": "table"}
        tag = json.dumps([*self._tables, table])
        if table not in self._tables and len(tag) <= LONGEST_TAG:
            self._tables.append(table)
            self._client.set_tag(self.key, _TABLES, tag)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._client.log_text(self.key, json.dumps(summary, indent=2), "summary.json")
        self._client.set_terminated(self.key, "FINISHED" if summary is not None else "KILLED")


def _tables(tag: str) -> list[dict[str, str]]:
    """Returns the tables that a tag names. One that MLflow has cut off names those that are whole."""
    try:
        return json.loads(tag)
    except json.JSONDecodeError:
        whole = tag[: tag.rfind("}") + 1]
        return json.loads(whole + "]") if whole else []


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """Yields the items in parts: a request holds so many at most."""
    rest = iter(items)
    while some := list(itertools.islice(rest, most)):
        yield some


def _allowed(name: str) -> str:
    """Returns a name of a metric or setting that MLflow takes, another one for each."""
    levels = (re.sub(r"[^\w.\- ]", lambda c: f":{ord(c[0]):x}:", level) for level in name.split("/"))
    return "/".join(level if level.strip(".") else f":{level}:" for level in levels)
