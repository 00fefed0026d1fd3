"""Attack both loops at the paper's own schedule, and compare what is found with what is claimed.

    .venv/bin/python benchmarks/audit_paper.py as-published 1 [--canaries 16384]
    .venv/bin/python benchmarks/audit_paper.py valid 0.8

50 epochs of 1,281 batches of 32 among 41,000 patches: 64,050 generator updates, each with 5
critic updates. The code that trains runs on canaries, on one core: half an hour for the loop as
published and three times that for the valid loop, which draws five batches where that draws one.
Prints Markdown for docs/privacy.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from veil import config, generators
from veil.privacy import audit

PATIENTS, PER_PATIENT, UPDATES = 41, 1000, 64_050


def task(loop: str, sigma: float, updates: int) -> config.Task:
    """The paper's training at one noise multiplier."""
    records = PATIENTS * PER_PATIENT
    settings = config.WganGenerator(kind="wgan", loop=loop, generator_updates=updates)
    return config.Task(
        settings=settings, seed=1, size=96, level=config.PrivacyLevel.parse(f"sigma-{sigma:g}"),
        records=records, patients=PATIENTS, per_patient=PER_PATIENT, delta=1 / records,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loop", choices=["as-published", "valid"])
    parser.add_argument("sigma", type=float)
    parser.add_argument("--canaries", type=int, default=16_384)
    parser.add_argument("--updates", type=int, default=UPDATES)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    generator = generators.build(task(asked.loop, asked.sigma, asked.updates))
    canaries = audit.Canaries(asked.canaries, np.random.default_rng(1))
    watched = generator.rehearse(canaries)
    bounds = audit.bounds(watched, canaries, generator.task.delta)
    minutes = (time.monotonic() - begun) / 60
    for row in audit.verdicts(bounds, generator.spent()):
        print(
            f"| {asked.loop} | {asked.sigma:g} | {generator.charge.draws:,} | {row['claim_of']} "
            f"{row['claim']:.3g} | {row['method']} | {row['lower_bound']:.2f} | "
            f"{row['ceiling']:.2f} | {row['verdict']} | {minutes:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
