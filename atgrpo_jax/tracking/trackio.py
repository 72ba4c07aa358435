"""Writes records to Trackio's database on this machine, or sends them to a server or a Space."""

import contextlib
import dataclasses
import io
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from atgrpo_jax.common.checks import check_types
from atgrpo_jax.common.errors import RunError, one_line
from atgrpo_jax.tracking.tracker import COLUMNS, About, Row, flat, library, refuse_secrets


@dataclasses.dataclass(frozen=True)
class Trackio:
    """On this machine the records of all runs are in one folder: TRACKIO_DIR, or Trackio's own."""

    project: str = "atgrpo_jax"  # that the run appears in
    space: str | None = None  # a Space of Hugging Face: NAME or USER/NAME; needs: hf auth login
    server: str | None = None  # http://...; the token is in TRACKIO_WRITE_TOKEN

    def __post_init__(self):
        check_types(self)
        refuse_secrets("Trackio.server", self.server, "TRACKIO_WRITE_TOKEN")

    def open(self, run: About) -> "_Run":
        trackio = library("trackio", "trackio")
        name = run.key or f"{run.name}-{uuid.uuid4().hex[:6]}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # we say in our own words where it is
                opened = trackio.init(
                    project=self.project,
                    name=name,
                    space_id=self.space,
                    server_url=self.server,
                    config=dict(run.settings),
                    resume="allow",
                    embed=False,
                )
        except (ValueError, trackio.LocalTokenNotFoundError) as error:
            raise RunError(one_line(error)) from error
        return _Run(opened, trackio, self.space or self.server or str(trackio.TRACKIO_DIR))


class _Run:
    lag_s = 5.0  # its thread writes twice a second

    def __init__(self, opened: Any, trackio: Any, place: str):
        self._opened = opened
        self._trackio = trackio
        self.key = opened.name
        self.where = f"{place}; to see it: trackio show --project {opened.project}"

    def log(self, step: int, record: Mapping[str, float]) -> None:
        self._opened.log(dict(record), step=step)

    def table(self, step: int, split: str, rows: Sequence[Row]) -> None:
        table = self._trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._opened.log({f"episodes/{split}": table}, step=step)

    def end(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._opened.log(flat(summary), step=summary["steps"])
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()
