"""Kill training at random moments, flip random bits of what it left, and count what came of it.

    python tests/privacy/faults.py --kills 50 --flips 300

Every killed run is resumed and must give the weights, the ledger and the synthetic pairs of the
run left alone, to the bit. Every damaged file must be refused by name where it is read.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

if find_spec("veil") is None:  # as a script; tests have chosen their library already
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

import torch
from tqdm import tqdm

from veil import artifacts, config, generators, training

SETTINGS = config.WganGenerator(
    kind="wgan", generator_width=4, critic_width=4, latent=8, generator_updates=30, batch_size=8,
    patient_batch_size=3, patient_patches=4,
)  # fmt: skip
DENOISER = config.DiffusionGenerator(
    kind="diffusion", channels=(4, 8), steps=20, batch_size=8, multiplicity=2, sampling_steps=2,
    public={"kind": "phantom", "volumes": 1, "phantom": {"shape": (48, 48, 1)}}, public_pairs=20,
    public_steps=10, patient_batch_size=3, patient_patches=4,
)  # fmt: skip
KINDS = {
    "valid": {},
    "patient": {"level": "patient-eps-9"},
    "as-published": {"loop": "as-published"},
    "diffusion": {"settings": DENOISER},
    "diffusion, patient": {"settings": DENOISER, "level": "patient-eps-9"},
}
RESULTS = ("weights.safetensors", "privacy.json", "pairs.npy", "state/checkpoint.safetensors")


def task(level: str = "sigma-1", loop: str = "valid", **changes) -> config.Task:
    """A small private task over 100 patches of 10 patients."""
    values = {
        "settings": SETTINGS.model_copy(update={"loop": loop}), "seed": 1, "size": 16,
        "level": config.PrivacyLevel.parse(level), "records": 100, "patients": 10,
        "per_patient": 10, "delta": 0.01,
    }  # fmt: skip
    return config.Task(**values | changes)


def identity(given: config.Task) -> dict:
    """What a checkpoint is of, as the study's jobs state it."""
    return {"task": given.model_dump(mode="json"), "code": "c", "patches": "p"}


def prepare(folder: Path) -> None:
    """Private patches, as the study cuts them."""
    drawn = np.random.default_rng(1).integers(0, 2, (100, 2, 16, 16)).astype(np.uint8)
    drawn[:, 0] *= 255
    artifacts.save_pairs(folder / "patches.npy", drawn)
    owners = pd.DataFrame({"participant_id": [f"sub-{n // 10}" for n in range(100)]})
    artifacts.write_table(folder / "patches.tsv", owners)


def fit(given: config.Task, folder: Path, out: Path, saves: float = 0.0) -> generators.Generator:
    """Train, with a checkpoint after every step, resuming where one stands in `out`."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own outlives a killed process
    training.Loop = partial(training.Loop, seconds_between_saves=saves)
    try:
        generator = generators.build(given, folder / "patches.npy", start_of(given, out))
        generator.fit(out / "state", torch.device("cpu"), identity(given))
    finally:
        training.Loop = training.Loop.func
    return generator


def start_of(given: config.Task, out: Path) -> Path | None:
    """The public start, if there is to be one, made where none stands in `out`."""
    if getattr(given.settings, "public", None) is None:
        return None
    path = out / "start.safetensors"
    if not path.exists():
        generator = generators.build(given)
        start = generator.learn_start(out / "public", torch.device("cpu"), identity(given))
        artifacts.save_tensors(path, start, given.of_start())
    return path


@cache
def stated(given: str) -> dict:
    """The statement of a task in JSON, which takes seconds, once for each."""
    return generators.build(config.Task.model_validate_json(given)).spent()


def produce(given: config.Task, folder: Path, out: Path) -> None:
    """What the study's jobs do for one point: train, state the cost, sample."""
    generator = fit(given, folder, out)
    statement = dict(stated(given.model_dump_json()))
    artifacts.save_tensors(out / "weights.safetensors", generator.weights(), {})
    statement["weights_sha256"] = artifacts.file_hash(out / "weights.safetensors")
    artifacts.write_sealed(out / "privacy.json", statement)
    pairs = generator.sample(16, seed=3, device=torch.device("cpu"), threads=1)
    artifacts.save_pairs(out / "pairs.npy", pairs)


def kill(given: config.Task, folder: Path, kills: int, rng: np.random.Generator) -> Counter:
    """So many runs, each killed at a random moment of its training and resumed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults"])
    whole, found = folder / "whole", Counter()
    begun = time.monotonic()
    fit(given, folder, whole)
    seconds = time.monotonic() - begun
    produce(given, folder, whole)
    steps = len((whole / "state/history.jsonl").read_text().splitlines())
    while found["killed"] < kills:
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        run = context.Process(target=fit, args=(given, folder, out))
        run.start()
        while run.is_alive() and not out.exists():
            time.sleep(0.001)
        run.join(float(rng.uniform(0, seconds)))
        run.kill()
        run.join()
        if run.exitcode == 0:
            continue  # it was through before the signal came
        found["killed"] += 1
        state = out / "state/history.jsonl"
        done = len(state.read_text().splitlines()) if state.exists() else 0
        found["before the first step" if done == 0 else "between steps 1 and the last"] += 1
        assert done <= steps
        produce(given, folder, out)
        same = all((out / n).read_bytes() == (whole / n).read_bytes() for n in RESULTS)
        found["equal to the bit" if same else "DIFFERENT"] += 1
    return found


def read(name: str, given: config.Task, folder: Path, out: Path) -> None:
    """Read a file as the study does."""
    if name == "checkpoint.safetensors":
        fit(given, folder, out)
    elif name == "privacy.json":
        artifacts.read_sealed(out / name)
    else:
        artifacts.load_tensors(out / name)


def flip(given: config.Task, folder: Path, flips: int, rng: np.random.Generator) -> Counter:
    """So many single bits flipped, in turn in checkpoint, weights and ledger."""
    out, found = folder / "flipped", Counter()
    produce(given, folder, out)
    paths = [out / "state/checkpoint.safetensors", out / RESULTS[0], out / RESULTS[1]]
    for number in range(flips):
        path = paths[number % 3]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read(path.name, given, folder, out)
            found["ACCEPTED"] += 1
        except artifacts.ArtifactError as error:
            found["refused" if str(path) in str(error) else "REFUSED WITHOUT A NAME"] += 1
        path.write_bytes(whole)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rng, total = np.random.default_rng(asked.seed), Counter()
    for number, (name, changes) in enumerate(KINDS.items()):
        share = [len(range(number, count, len(KINDS))) for count in (asked.kills, asked.flips)]
        with tempfile.TemporaryDirectory() as place:
            folder, given = Path(place), task(**changes)
            prepare(folder)
            found = kill(given, folder, share[0], rng) + flip(given, folder, share[1], rng)
        print(f"{name}: {dict(found)}", flush=True)
        total += found
    print(f"all: {dict(total)}")
    good = total["equal to the bit"] == asked.kills and total["refused"] == asked.flips
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
