"""Coroutines are run from plain functions: alone, under somebody else's event loop, and in threads."""

import asyncio
import os
import signal
import threading
import time

import pytest

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.errors import Stopped
from atgrpo_jax.common.stopping import Stopping


async def here():
    await asyncio.sleep(0)
    return threading.current_thread() is threading.main_thread(), coroutines.running_loop() is not None


async def under_a_loop(function):
    """Calls a plain function as a cell of a notebook is called."""
    return function()


def test_alone_a_coroutine_runs_in_its_callers_thread():
    assert coroutines.run(here()) == (True, True)
    assert coroutines.running_loop() is None


def test_under_another_loop_it_gets_a_thread():
    on_main_thread, _ = asyncio.run(under_a_loop(lambda: coroutines.run(here())))
    assert not on_main_thread


async def fails():
    raise ValueError("mine")


def test_its_error_is_the_callers():
    with pytest.raises(ValueError, match="mine"):
        coroutines.run(fails())
    with pytest.raises(ValueError, match="mine"):
        asyncio.run(under_a_loop(lambda: coroutines.run(fails())))


def test_a_stop_under_another_loop_ends_the_coroutine_and_leaves_the_others_alone():
    """Ctrl-C in a notebook: the run stops, the notebook's own tasks go on."""
    cancelled = threading.Event()

    async def waits():
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def notebook():
        other = asyncio.create_task(asyncio.sleep(0.01, "whole"))
        began = time.monotonic()
        with pytest.raises(Stopped), Stopping():
            coroutines.run(waits())
        assert cancelled.is_set() and time.monotonic() - began < 10
        return await other

    assert asyncio.run(notebook()) == "whole"
