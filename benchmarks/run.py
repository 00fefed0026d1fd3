"""Veil against the tool that people use today, as ratios within one run.

    .venv/bin/python benchmarks/run.py [patches] [scores] [step] [phantom]

Each row is the median of alternating runs of the two, so that a machine that drifts slows both.
Results agree to rounding, and this is asserted. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from veil import config, patches, volumes
from veil.cohorts import phantoms
from veil.evaluation import segmentation
from veil.generators import wgan
from veil.privacy import clipping

FULL = config.Phantom(
    shape=(312, 384, 127), zooms=(0.5, 0.5, 0.7), vessels=config.Vessels(branches=450)
)


def pair(
    ours: Callable[[], object], theirs: Callable[[], object], runs: int
) -> tuple[float, float]:
    """Median seconds of each, after one warm-up, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for function, held in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            if run:
                held.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def row(
    name: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], runs: int
) -> None:
    mine, other = pair(ours, theirs, runs)
    print(f"| {name} | {mine:.3g} s | {peer} | {other:.3g} s | {mine / other:.2f} |", flush=True)


def bench_phantom() -> None:
    start = time.perf_counter()
    phantoms.draw(FULL, 1)
    print(
        f"| draw a phantom of 312 x 384 x 127 | {time.perf_counter() - start:.3g} s | - | - | - |"
    )


def bench_patches() -> None:
    """1,000 patches of 96 x 96 from one patient of the paper's size; times 41 for the paper."""
    drawn = phantoms.draw(FULL, 1)
    settings = config.Patches(size=96, per_patient=1000)
    label, brain = drawn.label.astype(bool), drawn.brain.astype(bool)
    centres, _ = patches.choose_centres(label, brain, settings, np.random.default_rng(0))

    # As NIfTI files give them to everyone: Fortran-ordered.
    scan, mask = np.asfortranarray(drawn.image), np.asfortranarray(drawn.label)

    def by_patch() -> np.ndarray:
        found = []
        for x, y, z in centres:
            box = (slice(x - 48, x + 48), slice(y - 48, y + 48), z)
            image = scan[box].astype(np.float32)
            image = np.rint((image - image.min()) * (255 / (image.max() - image.min())))
            found.append(np.stack([image, mask[box]]).astype(np.uint8))
        return np.stack(found)

    def ours() -> np.ndarray:
        return patches.cut(scan, mask, centres, 96)

    np.testing.assert_array_equal(ours(), by_patch())
    row("cut 1,000 patches of 96 x 96", "a loop over centres", ours, by_patch, 5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        volumes.write(path, drawn.image, drawn.affine)

        def get_fdata() -> np.ndarray:
            return nib.as_closest_canonical(nib.load(path)).get_fdata()

        np.testing.assert_array_equal(volumes.read(path).data, get_fdata())
        row(
            "read and check a volume", "nibabel get_fdata", lambda: volumes.read(path), get_fdata, 5
        )


def bench_scores() -> None:
    """A segmentation with misses, a shift and some far false positives."""
    rng = np.random.default_rng(1)
    reference = phantoms.draw(FULL, 1).label.astype(bool)
    prediction = reference & (rng.random(reference.shape) < 0.8)
    prediction |= np.roll(prediction, 1, 0) | (rng.random(reference.shape) < 1e-5)
    zooms = FULL.zooms

    def transforms() -> float:
        to_prediction = distance_transform_edt(~prediction, sampling=zooms)
        to_reference = distance_transform_edt(~reference, sampling=zooms)
        total = to_prediction[reference].sum() + to_reference[prediction].sum()
        return float(total / (2 * reference.sum()))

    def ours() -> float:
        return segmentation.balanced_hausdorff(prediction, reference, zooms)

    np.testing.assert_allclose(ours(), transforms(), rtol=1e-9)
    row("bAHD of 312 x 384 x 127", "two scipy distance transforms", ours, transforms, 3)


def bench_step() -> None:
    """Clipped gradient sum of the critic, per record, against a plain one and against Opacus."""
    from opacus.grad_sample import GradSampleModule

    torch.set_num_threads(2)
    for width, size, batch in ((16, 96, 32), (16, 96, 128), (96, 96, 32)):
        settings = config.WganGenerator(kind="wgan", critic_width=width)
        critic = wgan.build_critic(settings, size)
        wgan.initialise(critic, torch.Generator().manual_seed(1))
        hooked = GradSampleModule(wgan.build_critic(settings, size), loss_reduction="sum")
        hooked.load_state_dict({f"_module.{k}": v for k, v in critic.state_dict().items()})
        x = torch.randn(batch, 2, size, size)

        def plain(critic=critic, x=x) -> list[torch.Tensor]:
            scores = wgan.mean_score(critic(x))
            return list(torch.autograd.grad(scores.sum(), list(critic.parameters())))

        def ours(critic=critic, x=x) -> list[torch.Tensor]:
            return clipping.clipped_sum(critic, wgan.mean_score, x, 1e-3)[0]

        def opacus(hooked=hooked, x=x) -> list[torch.Tensor]:
            hooked.zero_grad(set_to_none=True)
            wgan.mean_score(hooked(x)).sum().backward()
            samples = [p.grad_sample for p in hooked.parameters()]
            norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
            weights = (1e-3 / (norms + 1e-6)).clamp(max=1)
            sums = [torch.einsum("b,b...->...", weights, s) for s in samples]
            for p in hooked.parameters():
                p.grad_sample = None
            return sums

        for mine, other in zip(ours(), opacus(), strict=True):
            torch.testing.assert_close(mine, other, rtol=2e-2, atol=1e-6)
        name = f"private critic step, width {width}, batch {batch}"
        row(name, "the same without privacy", ours, plain, 5)
        row(name, "Opacus hooks", ours, opacus, 3)


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["phantom", "patches", "scores", "step"]
    versions = ", ".join(
        f"{p} {version(p)}" for p in ("torch", "numpy", "scipy", "nibabel", "opacus")
    )
    threads = torch.get_num_threads()
    print(f"{datetime.date.today()}, {platform.machine()}, {threads} threads, {versions}\n")
    print("| work | Veil | peer | peer's time | ratio |\n|---|---|---|---|---|")
    for name in chosen:
        globals()[f"bench_{name}"]()
