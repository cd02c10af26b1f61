"""Engines in a process of their own, asked turn by turn, with what each takes of time and memory."""

import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.device.engines import PLAIN, opened
from benchmarks.device.made import Setup, on_gpu
from data.errors import UserError, cause_of

SPARE = 15.0  # seconds to end in


class Took(NamedTuple):
    seconds: float
    busy: float  # CPU seconds of the process that holds the engine
    memory: float  # GB


class SpentError(Exception):
    """The time is."""


def hold(line: Any, held: str, setup: Setup) -> None:
    """Open engines and do what comes down the line, until nothing more does."""
    os.dup2(2, 1)  # whatever vLLM prints
    with suppress(EOFError, BrokenPipeError):
        try:
            engines = opened(held, setup)
            line.send((None, None))
        except Exception as error:  # whatever an engine dies of
            line.send((cause_of(error), None))
            return
        while (asked := line.recv()) is not None:
            engine, work, words, keep = asked
            start, busy = time.perf_counter(), time.process_time()
            try:
                found = getattr(engines[engine], work)(*words)
            except Exception as error:
                line.send((cause_of(error), None))
                continue
            took = Took(time.perf_counter() - start, time.process_time() - busy, peak_memory())
            if on_gpu(setup.device) and held == PLAIN:
                torch.cuda.empty_cache()  # what the next turn takes is its own
            line.send((None, (took, found if keep else None)))


def peak_memory() -> float:
    """GB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Held:
    """A process with engines, and what of the device's memory it takes."""

    def __init__(self, held: str, setup: Setup, end: float) -> None:
        """Open them.

        Raises:
            UserError: They can't be.
            SpentError: Before they were.
        """
        self.device, self.end = setup.device, end
        self.before = device_memory(setup.device)
        spawn = multiprocessing.get_context("spawn")
        self.line, far = spawn.Pipe()
        self.process = spawn.Process(target=hold, args=(far, held, setup))
        self.process.start()
        far.close()
        try:
            self._answer()
        except (UserError, SpentError):
            self.close()
            raise

    def ask(self, engine: str, work: str, words: Sequence[str], keep: bool = False) -> tuple[Took, np.ndarray | None]:
        """One turn.

        Raises:
            UserError: It failed.
            SpentError: It did not end in time; the engine has ended then.
        """
        self.line.send((engine, work, tuple(words), keep))
        with watched(self.device) as seen:
            took, found = self._answer()
        return (took._replace(memory=(seen[0] - self.before) / 1e9) if seen else took), found

    def _answer(self) -> Any:
        try:
            if not self.line.poll(max(0.0, self.end - time.monotonic())):
                self.process.kill()
                raise SpentError
            failed, found = self.line.recv()
        except (EOFError, OSError):
            raise UserError("its process ended") from None
        if failed:
            raise UserError(failed)
        return found

    def close(self) -> None:
        with suppress(OSError):
            self.line.send(None)
        self.process.join(SPARE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def device_memory(device: str) -> int:
    """Bytes of a GPU that all processes take together; 0 on a CPU."""
    if not on_gpu(device):
        return 0
    free, whole = torch.cuda.mem_get_info(device)
    return whole - free


@contextmanager
def watched(device: str) -> Iterator[list[int]]:
    """The most that `device_memory` comes to meanwhile, on a GPU."""
    most: list[int] = [device_memory(device)] if on_gpu(device) else []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.02):
            most[0] = max(most[0], device_memory(device))

    thread = threading.Thread(target=watch, daemon=True)
    if most:
        thread.start()
    try:
        yield most
    finally:
        end.set()
        if most:
            thread.join()
