"""Sends records to Weights & Biases, or keeps them for ``wandb sync``."""

import contextlib
import dataclasses
import io
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tracking.tracker import COLUMNS, About, Row, flat, library


@dataclasses.dataclass(frozen=True)
class Wandb:
    """The key is the one of ``wandb login``, or in WANDB_API_KEY. Other variables of wandb count, too."""

    project: str = "atgrpo_jax"  # that the run appears in
    entity: str | None = None  # your own if it is None
    group: str | None = None  # of runs that are shown together, e.g. those of several seeds
    tags: tuple[str, ...] = ()  # words to find the run by
    mode: Literal["", "online", "offline"] = ""  # "": what WANDB_MODE says, or else online
    finish_s: float = 120.0  # seconds that the end of a run waits for uploads; the rest is for ``wandb sync``

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "tags", tuple(self.tags))
        require(self, "finish_s", self.finish_s > 0, "must be positive")

    def open(self, run: About) -> "_Run":
        wandb = library("wandb", "wandb")
        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "offline" and not isinstance(run.folder, Path):
            raise RunError("offline records are on this machine's disk, and the run folder is in a bucket")
        run.local.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stderr(io.StringIO()):  # it says where its key comes from
            if mode == "online" and not wandb.login(prompt=False):
                raise RunError(
                    "not logged in; run: wandb login (or set WANDB_API_KEY, or: wandb.Wandb.mode = 'offline')"
                )
        try:
            try:
                with _noticing(wandb):
                    opened = self._init(wandb, run, mode)
            except _ended(wandb):  # its process has ended since an earlier record was closed
                opened = self._init(wandb, run, mode)
        except wandb.errors.AuthenticationError as error:
            raise RunError("its key is not accepted; run: wandb login --relogin") from error
        return _Run(opened, wandb)

    def _init(self, wandb: Any, run: About, mode: str) -> Any:
        opened = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            mode=mode,
            id=run.key or uuid.uuid4().hex[:12],
            name=run.name,
            resume="allow",
            reinit="create_new",  # a run of the notebook around us stays as it is
            dir=str(run.local),
            settings=wandb.Settings(
                silent=True,
                console="off",  # what is printed is not its concern
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                init_timeout=30,
                finish_timeout=self.finish_s,
                finish_timeout_raises=True,
            ),
        )
        opened.config.update(dict(run.settings), allow_val_change=True)  # steps may be more than before
        # Its own count of steps never goes back, and a resumed run does. So ours is a metric.
        opened.define_metric("step", hidden=True)
        opened.define_metric("*", step_metric="step")
        return opened


class _Run:
    lag_s = 30.0  # its process writes every 15 seconds

    def __init__(self, opened: Any, wandb: Any):
        self._opened = opened
        self._wandb = wandb
        self.key = opened.id
        kept = Path(opened.dir).parent
        self.where = f"{kept}; to send it: wandb sync {kept}" if opened.offline else opened.url

    def log(self, step: int, record: Mapping[str, float]) -> None:
        with _noticing(self._wandb):
            self._opened.log({"step": step, **record})

    def table(self, step: int, split: str, rows: Sequence[Row]) -> None:
        table = self._wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        with _noticing(self._wandb):
            self._opened.log({"step": step, f"episodes/{split}": table})

    def end(self, summary: Mapping[str, Any] | None) -> None:
        with _noticing(self._wandb):
            if summary is not None:
                self._opened.summary.update(flat(summary))
            self._opened.finish(exit_code=0 if summary is not None else 1)


def _ended(wandb: Any) -> tuple[type[Exception], ...]:
    """Returns what the library raises if its process has ended."""
    mailbox = wandb.sdk.mailbox
    return ConnectionError, mailbox.HandleAbandonedError, mailbox.MailboxClosedError


@contextlib.contextmanager
def _noticing(wandb: Any) -> Iterator[None]:
    """Lets go of a process that has ended, so that the next ``open`` starts another one."""
    try:
        yield
    except _ended(wandb):
        with contextlib.suppress(*_ended(wandb)):
            wandb.teardown()
        raise
