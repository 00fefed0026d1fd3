"""One resumable training loop for everything that is trained (floor 3).

The loop knows steps, checkpoints, progress and history; what a step does is the trainee's
business. State is saved to a folder that no workflow engine cleans up, whole or not at all,
so that a killed run goes on from its last checkpoint.

Privacy: checkpoints and history stay on the private side of the study. A run that resumes
repeats no charged step: what happened after the last checkpoint is discarded with it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from veil import artifacts

log = logging.getLogger("veil")
HISTORY, PROGRESS = "history.jsonl", "progress.json"
SECONDS_BETWEEN_LINES = 30


class Trainee(Protocol):
    """What the loop trains."""

    def step(self) -> Mapping[str, float]:
        """Take one step and return what the history should record of it."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, random states included."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How to run a trainee: for how long, where to keep its state, how often to save it."""

    steps: int
    folder: Path
    """State folder: `checkpoint.safetensors` and `history.jsonl`."""
    identity: Mapping[str, Any]
    """What the run is of, as JSON values; a checkpoint of another identity is refused."""
    name: str = "training"
    seconds_between_saves: float = 60.0
    records: int = 200
    """How many lines the history gets over the whole run."""

    def run(self, trainee: Trainee) -> None:
        """Run the trainee to the last step, resuming where a checkpoint stands."""
        start = self._resume(trainee)
        every = max(self.steps // self.records, 1)
        began = saved = logged = time.monotonic()
        bar = tqdm(total=self.steps, initial=start, desc=self.name, disable=None, mininterval=1)
        for step in range(start + 1, self.steps + 1):
            values = trainee.step()
            bar.update()
            if step % every == 0 or step == self.steps:
                self._record({"step": step, **values})
            if time.monotonic() - logged > SECONDS_BETWEEN_LINES:
                logged = time.monotonic()
                self._tell(step, values, (logged - began) / (step - start))
            if time.monotonic() - saved > self.seconds_between_saves or step == self.steps:
                self._save(trainee, step)
                saved = time.monotonic()
        bar.close()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def history(self) -> Path:
        """One JSON object a line: the step and what the trainee reported."""
        return self.folder / HISTORY

    def _tell(self, step: int, values: Mapping[str, float], pace: float) -> None:
        """Say where the run is: a line in the log, and `progress.json` for whoever watches."""
        left = pace * (self.steps - step)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        log.info(
            "%s: step %d of %d, %s left  %s", self.name, step, self.steps, duration(left), shown
        )
        told = {"name": self.name, "step": step, "steps": self.steps, "seconds_left": left}
        told |= {"values": {key: value for key, value in values.items() if math.isfinite(value)}}
        artifacts.write_json(self.folder / PROGRESS, {**told, "identity": dict(self.identity)})

    def _save(self, trainee: Trainee, step: int) -> None:
        meta = {"step": step, "identity": dict(self.identity)}
        artifacts.save_tensors(self._checkpoint, trainee.state(), meta)

    def _resume(self, trainee: Trainee) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._checkpoint.exists():
            self.history.unlink(missing_ok=True)
            return 0
        tensors, meta = artifacts.load_tensors(self._checkpoint)
        self._refuse_another(meta["identity"])
        trainee.load_state(tensors)
        step = int(meta["step"])
        self._trim_history(step)
        log.info("%s: resuming at step %d of %d", self.name, step, self.steps)
        return step

    def _refuse_another(self, found: Mapping[str, Any]) -> None:
        """Raise ArtifactError, naming every key in which the checkpoint is of another run."""
        if differing := differences(found, self.identity):
            raise artifacts.ArtifactError(
                f"{self._checkpoint}: a checkpoint of another run: {differing}. Allowed "
                f"is one of this run: restore what it was made with, or delete {self.folder} to "
                "start anew"
            )

    def _record(self, values: Mapping[str, float]) -> None:
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)) + "\n")

    def _trim_history(self, step: int) -> None:
        """Drop lines after the checkpoint, and a last line that a kill cut short."""
        if not self.history.exists():
            return
        kept = []
        for line in self.history.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue
        artifacts.write_text(self.history, "".join(kept))


def duration(seconds: float) -> str:
    """Hours, minutes or seconds, as a person says them."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Where two nested mappings of JSON values differ, by dotted key; empty where nowhere."""
    mine = json.loads(json.dumps(dict(wanted)))  # as it comes back from a file
    there, here = (dict(_leaves(identity)) for identity in (found, mine))
    return "; ".join(
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    )


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, each under its dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def write_history(folder: Path, history: Path) -> None:
    """Write the history of a state folder, empty if there was nothing to learn."""
    path = folder / HISTORY
    artifacts.write_text(history, path.read_text(encoding="utf-8") if path.exists() else "")


@lru_cache  # once a process, which keeps its place
def choose_device() -> torch.device:
    """A GPU where there is one, else the CPU. (job.py refuses a CPU where a GPU was promised.)

    Jobs beside each other on one machine spread over its GPUs, and share them evenly if they are
    more. Under SLURM a job sees its own GPU alone.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    return torch.device("cuda", place_among_jobs() % count if count > 1 else 0)


HELD: list[TextIO] = []
"""Locks that this process keeps until it ends."""


def place_among_jobs() -> int:
    """The lowest number that no other process of this user on this machine holds.

    0 where the system's temporary folder knows no locks.
    """
    folder = Path(tempfile.gettempdir()) / f"veil-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    number = 0
    while True:
        file = (folder / f"gpu-{number}").open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            number += 1
        except OSError:
            return 0
        else:
            HELD.append(file)
            return number


class Stateful(Protocol):
    """Anything else with a place to go on from."""

    def state(self) -> dict[str, Tensor]:
        """Where it stands."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""


Part = nn.Module | torch.optim.Optimizer | torch.Generator | Stateful


def pack(**parts: Part) -> dict[str, Tensor]:
    """Modules, optimisers, random generators and the like as one flat mapping of tensors."""
    flat: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            flat[f"{name}.random"] = part.get_state()
        elif isinstance(part, torch.optim.Optimizer):
            for index, values in part.state_dict()["state"].items():
                for key, value in values.items():
                    flat[f"{name}.{index}.{key}"] = torch.as_tensor(value)
        else:
            held = part.state_dict() if isinstance(part, nn.Module) else part.state()
            flat |= {f"{name}.{key}": value for key, value in held.items()}
    # Clones: safetensors refuses tensors that share memory.
    return {key: value.detach().clone() for key, value in flat.items()}


def unpack(state: Mapping[str, Tensor], **parts: Part) -> None:
    """Load what `pack` made back into the same parts."""
    for name, part in parts.items():
        mine = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        if isinstance(part, torch.Generator):
            part.set_state(mine["random"])
        elif isinstance(part, torch.optim.Optimizer):
            held: dict[int, dict[str, Tensor]] = {}
            for key, value in mine.items():
                index, field = key.split(".", 1)
                held.setdefault(int(index), {})[field] = value
            part.load_state_dict({**part.state_dict(), "state": held})
        elif isinstance(part, nn.Module):
            part.load_state_dict(mine)
        else:
            part.load_state(mine)
