"""Where a study that runs has got to, from the files it leaves behind (floor 5).

Privacy: losses are exact numbers about private patches; this is for those who may see the scans.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from veil import artifacts, generators, training
from veil.config import Task
from veil.generators.private import PrivateGenerator
from veil.privacy.accounting import accountant
from veil.report.page import epsilon

STEPS = re.compile(r"(\d+) of (\d+) steps \([\d.]+%\) done")
QUIET = 300
"""Seconds without a word after which a training is called silent: slow, waiting, or dead."""


def shown(results: Path, logs: Path) -> str:
    """A few lines: jobs done, and each training's step, epsilon so far, losses and time left."""
    lines = [jobs(logs)]
    for folder, _, names in sorted(os.walk(results)):
        if training.PROGRESS in names and (line := _line(Path(folder), results)):
            lines.append(line)
    return "\n".join(lines)


def jobs(logs: Path) -> str:
    """How many jobs of the newest run are done, from the workflow engine's own log."""
    newest = max(logs.glob("*.snakemake.log"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return "no run yet"
    counted = STEPS.findall(newest.read_text(encoding="utf-8", errors="replace"))
    return "{} of {} jobs done".format(*counted[-1]) if counted else "no job done yet"


def _line(state: Path, results: Path) -> str | None:
    """What one training tells; None if it ended meanwhile."""
    told = state / training.PROGRESS
    try:
        progress, silent = artifacts.read_json(told), time.time() - told.stat().st_mtime
    except FileNotFoundError:
        return None
    values = "  ".join(f"{key} {value:.4g}" for key, value in progress["values"].items())
    return "  ".join(
        [
            f"{state.parent.relative_to(results)}: step {progress['step']} of {progress['steps']}",
            f"{training.duration(progress['seconds_left'])} left",
            *_spent(progress),
            values,
            *([f"(silent for {training.duration(silent)})"] if silent > QUIET else []),
        ]
    )


def _spent(progress: Mapping[str, Any]) -> list[str]:
    """Epsilon of the steps so far, for trainings that spend any."""
    if "task" not in progress["identity"] or progress["name"] == "phantoms":
        return []
    try:
        task = Task.model_validate(progress["identity"]["task"])
    except ValidationError:
        return ["(of other settings than today's)"]
    generator = generators.build(task)
    if not isinstance(generator, PrivateGenerator):
        return []
    patch, patient = generator.epsilons_after(progress["step"])
    return [
        f"ε so far {epsilon(patch)} per patch, {epsilon(patient)} per patient "
        f"(δ = {task.delta:.3g}, add or remove one {task.level.unit}, {accountant()})"
    ]
