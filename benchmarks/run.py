"""Veil against the tool that people use today, as ratios within one run.

    .venv/bin/python benchmarks/run.py [phantom] [patches] [scores] [ssim] [frechet]

Each row is the median of alternating runs of the two, so that a machine that drifts slows both.
Results agree to rounding, and this is asserted. Prints Markdown for docs/benchmarks.md.
The private step has its own script, private_step.py.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import linalg
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from veil import config, patches, volumes
from veil.cohorts import phantoms
from veil.evaluation import diversity, segmentation, similarity

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
    borders(prediction, reference, zooms)


def borders(prediction: np.ndarray, reference: np.ndarray, zooms: tuple[float, ...]) -> None:
    """HD95 and NSD of the same segmentation."""
    rows = [torch.from_numpy(mask[None, None]) for mask in (prediction, reference)]

    def ours() -> list[float]:
        there, back = segmentation.surface_distances(prediction, reference, zooms)
        hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
        return [hd95, np.mean(np.concatenate([there, back]) <= 1.0)]

    def theirs() -> list[float]:
        hd95 = compute_hausdorff_distance(*rows, True, percentile=95, spacing=list(zooms))
        return [float(hd95), float(compute_surface_dice(*rows, [1.0], True, spacing=list(zooms)))]

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-5)
    row("HD95 and NSD of the same", "MONAI", ours, theirs, 1)


def bench_ssim() -> None:
    """All pairs of 60 images of 96 x 96; a study has 1,000, whose time per pair is also shown."""
    rng = np.random.default_rng(0)
    images = np.stack(
        [gaussian_filter(rng.normal(size=(96, 96)), s) for s in rng.uniform(0.5, 3, 60)]
    )
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    images = np.rint(255 * (images - low) / (high - low)).astype(np.uint8)

    def theirs() -> float:
        pairs = combinations(images, 2)
        return np.mean([structural_similarity(a, b, data_range=255, win_size=7) for a, b in pairs])

    np.testing.assert_allclose(diversity.mean_ssim(images), theirs(), atol=1e-6)
    row("mean SSIM, 1,770 pairs", "scikit-image", lambda: diversity.mean_ssim(images), theirs, 1)
    many = np.tile(images, (17, 1, 1))[:1000]
    start = time.perf_counter()
    diversity.mean_ssim(many)
    print(f"| mean SSIM, 499,500 pairs | {time.perf_counter() - start:.3g} s | - | - | - |")


def bench_frechet() -> None:
    """2,048 features of 5,000 and 5,000 images, the size of an FID."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(2048, 2048)) / 45
    first, second = rng.normal(size=(5000, 2048)) @ mix, 0.1 + rng.normal(size=(5000, 2048)) @ mix

    def theirs() -> float:
        one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        gap = first.mean(0) - second.mean(0)
        return float(gap @ gap + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real))

    def ours() -> float:
        return similarity.frechet_distance(first, second)

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-6)
    row("Fréchet distance, 2,048 features", "scipy sqrtm", ours, theirs, 1)


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["phantom", "patches", "scores", "ssim", "frechet"]
    versions = ", ".join(f"{p} {version(p)}" for p in ("numpy", "scipy", "nibabel", "monai"))
    threads = os.cpu_count()
    print(f"{datetime.date.today()}, {platform.machine()}, {threads} cores, {versions}\n")
    print("| work | Veil | peer | peer's time | ratio |\n|---|---|---|---|---|")
    for name in chosen:
        globals()[f"bench_{name}"]()
