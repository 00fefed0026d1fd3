"""Procedural angiograms with exact labels: public by construction (floor 1).

A phantom is a function of its seed and its `config.Phantom` alone; nothing in it comes from
a scan. Trunks follow the circle of Willis (or enter a 2-D projection from its edge),
branches grow from them by a persistent random walk, tapering and dividing by Murray's law
(r0^3 = r1^3 + r2^3). Vessels are drawn with partial volume, tissue and skull are added, then
point spread, coil sensitivity and Rician noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.interpolate import CubicSpline

from veil import volumes
from veil.cohorts.convert import describe
from veil.config import Phantom, PhantomCohort, Scanner, Vessels

Inside = Callable[[np.ndarray], bool]

# A head's half-axes in mm (left-right, back-front, down-up), and the trunks' control points
# in units of those, origin at the brain's centre. Mirrored for the other side.
HEAD = np.array([70.0, 86.0, 66.0])
TRUNKS: dict[str, tuple[float, list[tuple[float, float, float]]]] = {
    "internal carotid": (
        1.0,
        [
            (0.36, 0.10, -1.1),
            (0.32, 0.04, -0.8),
            (0.20, 0.20, -0.62),
            (0.22, 0.12, -0.45),
            (0.19, 0.14, -0.34),
        ],
    ),
    "middle cerebral": (
        0.75,
        [
            (0.19, 0.14, -0.34),
            (0.40, 0.20, -0.32),
            (0.60, 0.12, -0.22),
            (0.70, -0.05, -0.05),
            (0.76, -0.25, 0.15),
        ],
    ),
    "anterior cerebral": (
        0.6,
        [
            (0.19, 0.14, -0.34),
            (0.04, 0.32, -0.28),
            (0.03, 0.58, -0.08),
            (0.03, 0.62, 0.25),
            (0.03, 0.30, 0.52),
        ],
    ),
    "posterior communicating": (
        0.4,
        [(0.20, 0.12, -0.40), (0.15, -0.02, -0.38), (0.10, -0.12, -0.36)],
    ),
    "posterior cerebral": (
        0.6,
        [
            (0.0, -0.13, -0.36),
            (0.14, -0.14, -0.34),
            (0.26, -0.34, -0.26),
            (0.22, -0.62, -0.18),
            (0.14, -0.84, -0.08),
        ],
    ),
    "vertebral": (0.7, [(0.14, -0.42, -1.15), (0.10, -0.28, -0.85), (0.0, -0.18, -0.66)]),
}
BASILAR = (0.9, [(0.0, -0.18, -0.66), (0.01, -0.12, -0.52), (0.0, -0.13, -0.36)])


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Sampled centre lines: positions in mm (N, 3), radius in mm (N,), flow brightness (N,), and
    which line each point is of (N,)."""

    points: np.ndarray
    radius: np.ndarray
    flow: np.ndarray
    line: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A phantom: image int16, label and brain uint8, all (X, Y, Z); affine in mm."""

    image: np.ndarray
    label: np.ndarray
    brain: np.ndarray
    affine: np.ndarray


def draw(phantom: Phantom, seed: int) -> Drawn:
    """One phantom from its seed; the same seed gives the same voxels."""
    geometry, look, vary = (np.random.default_rng([seed, stream]) for stream in (0, 1, 2))
    phantom = phantom.with_values(
        {name: vary.uniform(*phantom.vary[name]) for name in sorted(phantom.vary)}
    )
    extent = np.array(phantom.shape) * phantom.zooms
    affine = np.diag([*phantom.zooms, 1.0])
    affine[:3, 3] = -extent / 2
    if phantom.shape[2] == 1:
        tree = _grow_flat(phantom, extent, geometry)
        image, label, brain = _projection(phantom, tree, look)
    else:
        size = HEAD * geometry.uniform(0.95, 1.03, 3)
        # A field of view lower than the head is centred nearer to the circle of Willis.
        middle = np.array([0, 0, min(0.3 * (extent[2] / 2 - HEAD[2]), 0)])
        tree = _grow_head(phantom, size, geometry)
        tree = replace(tree, points=tree.points - middle)
        image, label, brain = _angiogram(phantom, tree, size, middle, look)
    return Drawn(image=image, label=label, brain=brain, affine=affine)


def write_cohort(cohort: PhantomCohort, root: Path, threads: int = 1) -> None:
    """Write a whole cohort as BIDS: images, vessel labels, brain masks, participants.tsv."""
    splits = [name for name, n in cohort.splits.model_dump().items() for _ in range(n)]
    names = [f"sub-{number:03d}" for number in range(1, len(splits) + 1)]
    work = [(cohort, root, name) for name in names]
    with ProcessPoolExecutor(threads) as pool:
        list(pool.map(_write_patient, work))
    describe(root, "Procedural phantoms")
    describe(root / "derivatives" / "labels", "Labels of procedural phantoms", derivative=True)
    table = pd.DataFrame({"participant_id": names, "split": splits, "site": "phantom"})
    table.to_csv(root / "participants.tsv", sep="\t", index=False)


def _write_patient(work: tuple[PhantomCohort, Path, str]) -> None:
    cohort, root, name = work
    drawn = draw(cohort.phantom, seed=cohort.seed * 1_000_003 + int(name.removeprefix("sub-")))
    anat, labels = root / name / "anat", root / "derivatives" / "labels" / name / "anat"
    volumes.write(anat / f"{name}_angio.nii.gz", drawn.image, drawn.affine)
    volumes.write(labels / f"{name}_label-vessel_mask.nii.gz", drawn.label, drawn.affine)
    volumes.write(labels / f"{name}_label-brain_mask.nii.gz", drawn.brain, drawn.affine)


# ------------------------------------------------------------------ geometry


def _grow_head(phantom: Phantom, size: np.ndarray, rng: np.random.Generator) -> Tree:
    """The tree of one head, in mm around the brain's centre."""
    vessels = phantom.vessels
    step = 0.4 * min(phantom.zooms)
    base = rng.uniform(*vessels.trunk_radius)
    lines = []
    for side in (-1, 1):
        for scale, control in TRUNKS.values():
            points = np.array(control) * [side, 1, 1]
            lines.append(_trunk(points * size, base * scale * rng.uniform(0.85, 1.1), step, rng))
    scale, control = BASILAR
    lines.append(_trunk(np.array(control) * size, base * scale, step, rng))

    def inside(point: np.ndarray) -> bool:
        return float(np.sum((point / size) ** 2)) < 0.97

    lines += _branch(lines, phantom, step, inside, rng)
    return _collect(lines, rng)


def _grow_flat(phantom: Phantom, extent: np.ndarray, rng: np.random.Generator) -> Tree:
    """The tree of a 2-D projection, in mm around the image's centre; feeders enter at an edge."""
    step = 0.4 * min(phantom.zooms[:2])
    lines = []
    for _ in range(rng.integers(1, 4)):
        start = np.array([rng.uniform(-0.3, 0.3), -0.52])
        bends = [start]
        for height in (-0.25, 0.0, rng.uniform(0.1, 0.3)):
            bends.append(np.array([start[0] + rng.normal(0, 0.12), height]))
        points = np.column_stack([np.array(bends) * extent[:2], np.zeros(len(bends))])
        radius = rng.uniform(*phantom.vessels.trunk_radius)
        lines.append(_trunk(points, radius, step, rng))
    half = extent / 2 + 1

    def inside(point: np.ndarray) -> bool:
        return bool((np.abs(point[:2]) < half[:2]).all())

    lines += _branch(lines, phantom, step, inside, rng, flat=True)
    return _collect(lines, rng)


def _trunk(control: np.ndarray, radius: float, step: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth line through jittered control points; rows are x, y, z, radius."""
    length = np.linalg.norm(np.diff(control, axis=0), axis=1).sum()
    jittered = control.copy()
    jittered[1:-1] += rng.normal(0, 0.03 * length / len(control), control[1:-1].shape)
    knots = np.linspace(0, 1, len(control))
    along = np.linspace(0, 1, max(int(length / step), 4))
    points = CubicSpline(knots, jittered)(along)
    return np.column_stack([points, radius * (1 - 0.3 * along)])


def _branch(
    lines: list[np.ndarray], phantom: Phantom, step: float, inside: Inside,
    rng: np.random.Generator, flat: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """Grow branches: each starts on a random earlier line, favouring thick ones."""
    vessels = phantom.vessels
    grown: list[np.ndarray] = []
    parents = [line for line in lines if line[0, 3] >= 2 * vessels.least_radius] or list(lines)
    for _ in range(vessels.branches):
        weight = np.array([len(line) * line[:, 3].mean() for line in parents])
        parent = parents[rng.choice(len(parents), p=weight / weight.sum())]
        at = int(rng.integers(len(parent) // 4, len(parent)))
        forward = parent[min(at + 1, len(parent) - 1), :3] - parent[max(at - 1, 0), :3]
        share = rng.uniform(0.25, 0.7)  # of the parent's flow, so that r^3 divides
        radius = parent[at, 3] * share ** (1 / 3)
        line = _walk(parent[at, :3], forward, radius, vessels, step, inside, rng, flat)
        if len(line) * step > 4 * radius:
            grown.append(line)
            if line[-1, 3] > vessels.least_radius or len(line) * step > 10:
                parents.append(line)
    return grown


def _walk(
    start: np.ndarray, forward: np.ndarray, radius: float, vessels: Vessels, step: float,
    inside: Inside, rng: np.random.Generator, flat: bool,
) -> np.ndarray:  # fmt: skip
    """A persistent random walk that leaves its parent at 30 to 80 degrees; rows x, y, z, r."""
    axes = np.array([1, 1, 0 if flat else 1])
    away = rng.normal(size=3) * axes
    forward = forward / (np.linalg.norm(forward) + 1e-9)
    away -= forward * (away @ forward)
    angle = rng.uniform(0.5, 1.4)
    heading = np.cos(angle) * forward + np.sin(angle) * away / (np.linalg.norm(away) + 1e-9)
    stride = 1.5  # mm between turns
    turns = rng.normal(size=(400, 3)) * axes * vessels.tortuosity
    bend = rng.normal(size=3) * axes * 0.25 * vessels.tortuosity
    points, radii = [start], [radius]
    for turn in turns[: int(rng.uniform(8, 60))]:
        # Arteries run outwards, to the cortex; without the drift they tangle at the base.
        outwards = points[-1] * axes / (np.linalg.norm(points[-1] * axes) + 1e-9)
        heading = heading + turn + bend + 0.12 * outwards
        heading = heading / np.linalg.norm(heading)
        point = points[-1] + stride * heading
        radius *= 0.985
        if radius < vessels.least_radius or not inside(point):
            break
        points.append(point)
        radii.append(radius)
    if len(points) < 3:
        return np.empty((0, 4))
    knots = np.arange(len(points))
    along = np.linspace(0, knots[-1], int(knots[-1] * stride / step) + 2)
    line = CubicSpline(knots, np.array(points))(along)
    return np.column_stack([line, np.interp(along, knots, radii)])


def _collect(lines: list[np.ndarray], rng: np.random.Generator) -> Tree:
    """All lines as one set of points; flow fades along each line and differs between lines."""
    flow = [
        rng.uniform(0.75, 1.0) * np.linspace(1, rng.uniform(0.55, 0.95), len(line))
        for line in lines
    ]
    points = np.concatenate(lines)
    return Tree(
        points=points[:, :3],
        radius=points[:, 3],
        flow=np.concatenate(flow),
        line=np.repeat(np.arange(len(lines)), [len(line) for line in lines]),
    )


# ------------------------------------------------------------------ drawing


def _rasterise(
    tree: Tree, shape: tuple[int, ...], zooms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, coverage x flow) of each voxel, in 0..1, float32, by partial volume.

    A ball of soft edge at each point, of which the maximum counts. `shape` and `zooms` have two
    or three axes; points are in mm around the centre.
    """
    covered = np.zeros(int(np.prod(shape)), np.float32)
    bright = np.zeros_like(covered)
    edge = float(np.mean(zooms))
    for rows, voxels, distance in _near(tree, shape, zooms):
        radius = tree.radius[rows]
        # A vessel thinner than a voxel fills only its share of the cross-section.
        fill = np.minimum(1, np.pi * (radius / edge) ** 2)
        cover = fill * np.clip((radius - distance) / edge + 0.5, 0, 1)
        np.maximum.at(covered, voxels, cover.astype(np.float32))
        np.maximum.at(bright, voxels, (cover * tree.flow[rows]).astype(np.float32))
    return covered.reshape(shape), bright.reshape(shape)


def _depth(tree: Tree, shape: tuple[int, ...], zooms: np.ndarray) -> np.ndarray:
    """Millimetres of vessel, times flow, that the ray through each pixel crosses, float32."""
    total = np.zeros(int(np.prod(shape)), np.float32)
    edge = float(np.mean(zooms))
    for line in np.unique(tree.line):
        mine = tree.line == line
        part = Tree(points=tree.points[mine], radius=tree.radius[mine], flow=tree.flow[mine],
                    line=tree.line[mine])  # fmt: skip
        here = np.zeros_like(total)
        for rows, pixels, distance in _near(part, shape, zooms):
            radius = part.radius[rows]
            # A vessel thinner than a pixel is spread over it: wider, and less deep.
            wide = np.maximum(radius, edge / 2)
            chord = 2 * np.sqrt(np.maximum(wide**2 - distance**2, 0)) * (radius / wide) ** 2
            np.maximum.at(here, pixels, (chord * part.flow[rows]).astype(np.float32))
        total += here
    return total.reshape(shape)


def _near(
    tree: Tree, shape: tuple[int, ...], zooms: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of the tree, flat indices of voxels in their reach, and the distances in mm."""
    axes = len(shape)
    centre = (np.array(shape) - 1) / 2
    edge = float(np.mean(zooms))
    inside = (np.abs(tree.points[:, :axes] / zooms) < centre + 4).all(axis=1)
    reach_of = np.ceil(tree.radius + edge / 2).astype(int)
    for reach in np.unique(reach_of[inside]):
        chosen = np.flatnonzero(inside & (reach_of == reach))
        spans = [np.arange(-k, k + 1) for k in np.ceil(reach / zooms).astype(int)]
        window = math.prod(map(len, spans))
        for part in np.array_split(chosen, len(chosen) * window // 2_000_000 + 1):
            place = tree.points[part][:, :axes] / zooms + centre
            away = np.zeros((len(part), 1), np.float32)
            index, there = np.zeros((len(part), 1), np.int64), np.ones((len(part), 1), bool)
            for axis, span in enumerate(spans):  # one axis after another: its row by all so far
                voxel = np.rint(place[:, axis, None]).astype(np.int64) + span
                square = (((voxel - place[:, axis, None]) * zooms[axis]) ** 2).astype(np.float32)
                within = (voxel >= 0) & (voxel < shape[axis])
                away = (away[:, :, None] + square[:, None]).reshape(len(part), -1)
                index = (index[:, :, None] * shape[axis] + voxel[:, None]).reshape(len(part), -1)
                there = (there[:, :, None] & within[:, None]).reshape(len(part), -1)
            keep = there & (away < (tree.radius[part][:, None] + edge / 2) ** 2)
            rows = np.broadcast_to(part[:, None], keep.shape)[keep]
            yield rows, index[keep], np.sqrt(away[keep])


def _angiogram(
    phantom: Phantom, tree: Tree, size: np.ndarray, middle: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TOF-MRA-like (image int16, label, brain) of a head with half-axes `size`, seen around
    `middle`; all in mm."""
    look, shape, zooms = phantom.scanner, phantom.shape, np.array(phantom.zooms)
    covered, bright = _rasterise(tree, shape, zooms)
    grid = np.meshgrid(
        *(
            ((np.arange(n) - (n - 1) / 2) * z + m).astype(np.float32)
            for n, z, m in zip(shape, zooms, middle, strict=True)
        ),
        indexing="ij", sparse=True,
    )  # fmt: skip
    depth = np.sqrt(sum((axis / half) ** 2 for axis, half in zip(grid, size, strict=True)))
    depth = depth + 0.025 * _smooth_field(shape, 30 / zooms, rng)
    brain = depth < 1
    tissue = _tissue(depth, zooms, look, rng)
    vessel = rng.uniform(*look.vessel)
    ratio = np.divide(bright, covered, out=np.zeros_like(bright), where=covered > 0)
    signal = tissue * (1 - covered) + vessel * ratio * covered
    signal = ndimage.gaussian_filter(signal, look.blur) if look.blur else signal
    image = _scan(signal, look, zooms, rng)
    return image, ((covered >= 0.5) & brain).astype(np.uint8), brain.astype(np.uint8)


def _tissue(
    depth: np.ndarray, zooms: np.ndarray, look: Scanner, rng: np.random.Generator
) -> np.ndarray:
    """Brain, fluid, bone, scalp and air, by depth (1 at the brain's surface)."""
    shape = depth.shape
    folds = _smooth_field(shape, 5 / zooms, rng)
    grey = rng.uniform(*look.background)
    brain = np.where(folds + 2.5 * (depth - 0.8) > 0, grey, 1.0).astype(np.float32)
    fluid = folds > 2.6 - 1.6 * depth
    brain[fluid] = 0.45
    ventricle = np.abs(depth - 0.28 - 0.04 * folds) < 0.05
    brain[ventricle] = 0.45
    brain += look.texture * _smooth_field(shape, 2.5 / zooms, rng)
    scalp = look.skull * (0.8 + 0.1 * folds)
    layers = [depth < 1, depth < 1.07, depth < 1.14]
    return np.select(layers, [brain, np.float32(0.12), scalp], np.float32(0.02)).astype(np.float32)


def _projection(
    phantom: Phantom, tree: Tree, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A 2-D angiogram in which contrast is the depth of vessel that a ray crosses."""
    look, shape, zooms = phantom.scanner, phantom.shape[:2], np.array(phantom.zooms[:2])
    covered, _ = _rasterise(tree, shape, zooms)
    # The tree is drawn flat, but its lines lie at many depths, so that a ray crosses several.
    filled = 1 - np.exp(-_depth(tree, shape, zooms) / look.saturation)
    around = ndimage.gaussian_filter(covered, 8 / zooms)
    around *= 1 + 0.5 * _smooth_field(shape, 5 / zooms, rng)
    background = 1 + look.texture * _smooth_field(shape, 6 / zooms, rng)
    background += 0.25 * look.bias * _smooth_field(shape, 60 / zooms, rng)
    contrast = rng.uniform(*look.vessel) - 1
    ghost = _moved_bone(shape, zooms, rng)
    signal = background + contrast * (filled + look.blush * around + look.misregistration * ghost)
    signal = ndimage.gaussian_filter(signal, look.blur) if look.blur else signal
    image = _scan(signal.astype(np.float32), look, zooms, rng)
    label = covered >= 0.5
    if rng.random() < look.frame:
        frame = _frame(shape, rng)
        image[frame] = image.max() if rng.random() < 0.7 else image.min()
        label &= ~frame
    return image[..., None], label.astype(np.uint8)[..., None], np.ones((*shape, 1), np.uint8)


def _moved_bone(shape: tuple[int, ...], zooms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is left of bone after subtracting a mask from which it has moved: pairs of bright and
    dark edges, in -1..1, where the bone moved, float32."""
    bone = np.zeros(shape, np.float32)
    for scale in (4, 12, 40):  # mm: from cancellous bone to the skull's outline
        field = _smooth_field(shape, scale / zooms, rng)
        bone += np.abs(field - rng.uniform(-0.5, 0.5)) < 0.12 * rng.uniform(1, 3)
    bone = ndimage.gaussian_filter(bone, 0.8)
    shift = rng.normal(size=2)
    shift *= rng.uniform(0.3, 1.2) / np.linalg.norm(shift) / zooms  # in mm
    there = np.clip(0.5 + _smooth_field(shape, 40 / zooms, rng), 0, 1)
    left: np.ndarray = (bone - ndimage.shift(bone, shift, order=1, mode="nearest")) * there
    return left


def _frame(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Where the collimator's shutters stand: along some of the edges, up to a quarter deep."""
    shut = np.ones(shape, bool)
    inner = []
    for edge in shape:
        low, high = (rng.random(2) < 0.6) * rng.uniform(0, 0.25, 2) * edge
        inner.append(slice(int(low), edge - int(high)))
    shut[tuple(inner)] = False
    return shut


def _scan(
    signal: np.ndarray, look: Scanner, zooms: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Coil sensitivity, Rician noise and storage as int16."""
    field = _smooth_field(signal.shape, 80 / zooms[: signal.ndim], rng)
    signal = signal * np.exp(look.bias * field).astype(np.float32)
    real = signal + look.noise * rng.standard_normal(signal.shape, np.float32)
    imaginary = look.noise * rng.standard_normal(signal.shape, np.float32)
    return np.clip(look.gain * np.hypot(real, imaginary), 0, 32767).astype(np.int16)


def _smooth_field(
    shape: tuple[int, ...], scale: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A smooth random field of mean 0 and deviation 1; `scale` in voxels per axis."""
    coarse = [max(int(np.ceil(n / s)) + 3, 4) for n, s in zip(shape, scale, strict=True)]
    seeds = rng.standard_normal(coarse)
    field = seeds.astype(np.float32)
    for axis, n in enumerate(shape):  # cubic interpolation one axis at a time
        knots = np.arange(coarse[axis])
        where = np.linspace(1, coarse[axis] - 2, n)
        weights = CubicSpline(knots, np.eye(coarse[axis]))(where).astype(np.float32)
        field = np.moveaxis(np.tensordot(weights, field, (1, axis)), 0, axis)
    return (field - field.mean()) / max(float(field.std()), 1e-6)
