"""A measuring process as seen from the run: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from benches.engines import Engine, Setting

ROOT = Path(__file__).parent.parent
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MNEMEX_NUM_THREADS")


class EngineFailed(RuntimeError):
    """An engine raised, or its process died; the message holds the last line it printed."""


class Process:
    """One `benches.worker`, in an environment made for it."""

    def __init__(self, setting: Setting, *, threads: int, log: Path) -> None:
        environment = dict(os.environ)
        environment.update({name: str(threads) for name in THREAD_VARIABLES})
        environment["HF_HUB_OFFLINE"] = "1"
        environment.update(setting.variables)
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self._log = log
        with log.open("w") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "benches.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    @property
    def number(self) -> int:
        """Process id."""
        return self._child.pid

    def send(self, do: str, **request: object) -> None:
        """Ask for something without waiting for it."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError as broken:
            raise self._failure() from broken

    def receive(self) -> dict[str, Any]:
        """Wait for the reply to the oldest request that has none yet."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._failure()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, do: str, **request: object) -> dict[str, Any]:
        """Send and receive."""
        self.send(do, **request)
        return self.receive()

    def end(self) -> None:
        """Close the pipes and wait; a process that does not end by itself is killed."""
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            if not pipe.closed:
                pipe.close()
        try:
            self._child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _failure(self) -> EngineFailed:
        code = self._child.wait()
        said = self._log.read_text().strip().splitlines()
        return EngineFailed(said[-1] if said else f"the process ended with status {code} and said nothing")


class Processes:
    """The processes of a run: one per engine, or, when shared, one per library for the whole of a quick run."""

    def __init__(self, *, shared: bool) -> None:
        self._logs = tempfile.TemporaryDirectory(prefix="mnemex-bench-logs-")
        self._shared = shared
        self._open: dict[tuple[str, str, int], Process] = {}
        self._started = 0

    def start(self, engine: Engine, setting: Setting, *, threads: int) -> Process:
        """Start a process for this engine, or take one that has served another engine of the library."""
        key = (engine.library, setting.name, threads)
        if self._shared and key in self._open:
            return self._open[key]
        self._started += 1
        process = Process(setting, threads=threads, log=Path(self._logs.name) / f"{self._started}.log")
        if self._shared:
            self._open[key] = process
        return process

    def release(self, process: Process, *, failed: bool = False) -> None:
        """End a process that nobody else uses, or that can do no more."""
        if failed:
            self._open = {key: other for key, other in self._open.items() if other is not process}
        if not self._shared or failed:
            process.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._open.values():
            process.end()
        self._open.clear()
        self._logs.cleanup()
