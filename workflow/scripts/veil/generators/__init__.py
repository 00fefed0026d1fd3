"""What is learned from private patches, and sampling from it (floor 4).

One file a generator, one line in `REGISTRY`. Modules are imported by name when needed, so
that editing one generator never reruns another.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from veil.config import Task
from veil.generators.base import Generator

REGISTRY = {
    "real": "Real",
    "phantom": "Phantoms",
    "wgan": "Wgan",
    "diffusion": "Diffusion",
    "fitted": "Fitted",
}


def build(task: Task, patches: Path | None = None, start: Path | None = None) -> Generator:
    """The generator that the task names.

    `patches` is where the private ones lie, if it may see them, and `start` what it goes on from.
    """
    kind = task.settings.kind
    build_one = getattr(import_module(f"veil.generators.{kind}"), REGISTRY[kind])
    generator: Generator = build_one(task, patches, start)
    return generator
