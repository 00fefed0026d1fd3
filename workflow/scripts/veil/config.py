"""The study as frozen models that validate themselves (floor 0; knows nothing else).

`load` turns the mapping that the workflow read into a `Study`, or raises `ConfigError`
with one line per fault: the key, the value and what is allowed. The same models make the
JSON schema, the commented default file and the reference page (`docs` below), so that the
four cannot drift apart.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

NAME = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
NUMBER = r"(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?"
PRIVACY = rf"none|sigma-{NUMBER}|(?:patient-)?eps-{NUMBER}"
SEED = r"0|[1-9][0-9]*"
RESERVED_NAMES = {"data", "release", "report", "threshold"}  # folders and table rows

Name = Annotated[str, Field(pattern=rf"^{NAME}$")]
PointName = Annotated[str, Field(pattern=rf"^{NAME}/(?:{PRIVACY})/seed-(?:{SEED})$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] <= ends[1]:
        raise ValueError(f"{ends[0]:g} must not be above {ends[1]:g}")
    return ends


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


# Aliases let a few lines of YAML stand for billions of items; what is shown of them is short.
BRIEF = reprlib.Repr()
BRIEF.maxlevel, BRIEF.maxstring, BRIEF.maxlong = 2, 200, 200


class ConfigError(ValueError):
    """A configuration that cannot be run; its text names every fault."""


class Model(BaseModel):
    """Frozen, and strict about keys at every level."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, raw: Any) -> Any:
        for key, value in raw.items() if isinstance(raw, dict) else ():
            given = value if isinstance(value, list | tuple) else [value]
            asked = str(cls.model_fields[key].annotation) if key in cls.model_fields else "bool"
            if "bool" not in asked and any(isinstance(item, bool) for item in given):
                raise ValueError(f"{key}: {value}, as YAML reads yes, no, on and off, is no number")
        return raw


# ------------------------------------------------------------------ privacy levels


class PrivacyLevel(Model):
    """One level of the privacy axis, spelt `none`, `sigma-X`, `eps-X` or `patient-eps-X`."""

    kind: Literal["none", "sigma", "eps", "patient-eps"]
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `none`, `sigma-0.65`, `eps-5`, `patient-eps-3`; one canonical spelling only."""
        if not re.fullmatch(PRIVACY, text):
            raise ValueError(
                f"privacy level {text!r}: allowed are 'none', 'sigma-X', 'eps-X' and "
                "'patient-eps-X', X a positive decimal in its shortest spelling (sigma-0.65, not "
                "sigma-.65 or sigma-0.650)"
            )
        if text == "none":
            return cls(kind="none")
        kind, _, number = text.rpartition("-")
        if float(number) <= 0:
            raise ValueError(f"privacy level {text!r}: X must be above 0 (without privacy: 'none')")
        return cls(kind=kind, value=float(number))

    @property
    def unit(self) -> Literal["patch", "patient"]:
        """Whose presence is protected."""
        return "patient" if self.kind == "patient-eps" else "patch"


def _check_privacy(text: str) -> str:
    PrivacyLevel.parse(text)
    return text


# ------------------------------------------------------------------ cohorts


class Splits(Model):
    """How many patients each split has: public numbers, stated rather than counted."""

    train: Annotated[int, Field(ge=0)] = 0
    """Training patients. With patches.per_patient it fixes the public number of records,
    hence the sampling rate and delta, which must not move when one record does."""
    validation: Annotated[int, Field(ge=0)] = 0
    """Validation patients, on whom the U-Net is chosen."""
    test: Annotated[int, Field(ge=1)] = 1
    """Test patients."""


class Vessels(Model):
    """Geometry of the phantom's vessel tree."""

    branches: Annotated[int, Field(ge=1, le=5000)] = 220
    """Branches grown from the scripted trunks (circle of Willis, or 2-D feeders)."""
    trunk_radius: Range = (1.6, 2.3)
    """Radius of the trunks, in mm."""
    least_radius: Positive = 0.35
    """Radius at which a branch ends, in mm."""
    tortuosity: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How much the direction wanders: 0 straight, 1 a random walk."""


class Scanner(Model):
    """Appearance: tissue, contrast, noise. Intensities are relative to white matter = 1."""

    vessel: Range = (2.4, 3.4)
    """Intensity of fast flow; drawn per patient from this range."""
    background: Range = (0.75, 1.0)
    """Intensity of grey against white matter."""
    texture: Annotated[float, Field(ge=0, le=1)] = 0.06
    """Standard deviation of the smooth tissue texture."""
    skull: Annotated[float, Field(ge=0)] = 1.5
    """Intensity of the scalp's fat."""
    blur: Annotated[float, Field(ge=0, le=3)] = 0.45
    """Standard deviation of the point spread, in voxels."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.09
    """Standard deviation of each quadrature channel of the Rician noise."""
    bias: Annotated[float, Field(ge=0, le=1)] = 0.16
    """Depth of the smooth coil-sensitivity field."""
    frame: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Chance that a 2-D angiogram has a collimator's frame, of one intensity, at its edges."""
    gain: Positive = 180.0
    """Stored units (int16) per unit of intensity."""
    saturation: Annotated[float, Field(gt=0, le=100)] = 1.0
    """2-D: depth of vessel, in mm along the ray, at which brightness has come to 63 %."""
    blush: Annotated[float, Field(ge=0, le=1)] = 0.0
    """2-D: brightness of the capillaries around the vessels, against that of vessels."""
    misregistration: Annotated[float, Field(ge=0, le=1)] = 0.0
    """2-D: brightness of the edges of bone that moved between mask and contrast image."""


def expand(path: str) -> str:
    """A path with its `~` and `${VARIABLES}` filled in; ValueError for one that is not set."""
    for name in re.findall(r"\$\{?(\w+)\}?", path):
        if not os.environ.get(name):
            raise ValueError(f"environment variable {name} is not set")
    path = os.path.expandvars(Path(path).expanduser()) if path else ""
    # Snakemake takes braces for wildcards; the rest is no text that a file system and JSON share.
    if not path or re.search(r"[{}\0\ud800-\udfff]", path):
        raise ValueError("a path; allowed: one that is not empty, without braces, in Unicode")
    return path


class Phantom(Model):
    """A procedural volume: public by construction, a function of its seed alone."""

    shape: tuple[int, int, int] = (128, 144, 40)
    """Voxels along x, y, z. A z of 1 gives a 2-D projection angiogram."""
    zooms: tuple[Positive, Positive, Positive] = (0.9, 0.9, 1.3)
    """Voxel size in mm."""
    vessels: Vessels = Vessels()
    """Geometry."""
    scanner: Scanner = Scanner()
    """Appearance."""
    vary: dict[str, Range] = {}
    """Domain randomisation: settings of which every phantom draws its own value, by their dotted
    name, as `scanner.noise: [0.02, 0.2]`. A setting that is a range itself, as `scanner.vessel`,
    becomes that one value. A study's `vary` replaces the default file's whole."""

    def with_values(self, values: Mapping[str, float]) -> Self:
        """The phantom with these values at dotted names; nothing of it varies any more."""
        parts = {part: getattr(self, part).model_dump() for part in ("vessels", "scanner")}
        for name, value in values.items():
            part, _, key = name.partition(".")
            match parts[part][key]:
                case tuple():
                    parts[part][key] = (float(value), float(value))
                case int():
                    parts[part][key] = round(value)
                case _:
                    parts[part][key] = float(value)
        return type(self)(**{**self.model_dump(exclude={*parts, "vary"}), **parts})

    @model_validator(mode="after")
    def _can_vary(self) -> Self:
        names = {
            f"{part}.{name}"
            for part in ("vessels", "scanner")
            for name, field in type(getattr(self, part)).model_fields.items()
            if field.annotation in (int, float, tuple[float, float])
        }
        for name, (low, high) in self.vary.items():
            if name not in names:
                raise ValueError(f"vary: {name!r}: {_allowed(name, names)}")
            for end in (low, high):
                try:
                    self.with_values({name: end})
                except ValidationError as error:
                    raise ValueError(f"vary.{name}: {error.errors()[0]['msg']}") from None
        return self

    @field_validator("shape")
    @classmethod
    def _plausible(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(shape[:2]) < 16 or shape[2] < 1 or math.prod(shape) > 2**28:
            raise ValueError("x and y of at least 16, z of at least 1, at most 2^28 voxels in all")
        return shape


class PhantomCohort(Model):
    """A cohort of phantoms, written as BIDS."""

    kind: Literal["phantom"]
    """`phantom`: made by code."""
    splits: Splits = Splits(train=8, validation=2, test=3)
    """Patients in each split."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the cohort; cohorts of equal seed and geometry hold the same patients."""
    phantom: Phantom = Phantom()
    """What is drawn."""

    def as_bids(self, root: str) -> BidsCohort:
        """How to read the cohort once it is written to `root`."""
        return BidsCohort(kind="bids", path=root, splits=self.splits, region="file")


class BidsCohort(Model):
    """A cohort on disk, in BIDS."""

    kind: Literal["bids"]
    """`bids`: found by its file names."""
    path: str
    """Root of the BIDS data set; `${VARIABLES}` are expanded."""
    splits: Splits
    """Patients in each split. Without a `split` column in participants.tsv the patients are
    dealt out in these numbers, in an order that `seed` decides."""
    seed: Annotated[int, Field(ge=0)] | None = 1
    """Seed of the order; null takes the patients in the order of their ids."""
    image_suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = "angio"
    """Suffix of the images: sub-*/anat/*_<suffix>.nii.gz."""
    labels: str = "derivatives/labels"
    """Folder of the labels below the root."""
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = "vessel"
    """BIDS `label` entity of the masks: *_label-<label>_mask.nii.gz."""
    region: Literal["file", "head", "field", "all"] = "head"
    """Where background patches come from and predictions count: `file` reads a mask
    *_label-brain_mask.nii.gz beside the labels, `head` takes the voxels above an Otsu
    threshold (largest part, filled), `field` all but frames of the highest or lowest value
    that touch a slice's edge (collimators, padding), `all` every voxel."""

    @field_validator("path")
    @classmethod
    def _expand(cls, path: str) -> str:
        return expand(path)

    def as_bids(self, root: str) -> BidsCohort:
        """How to read the cohort at `root`."""
        return BidsCohort(**{**self.model_dump(), "kind": "bids", "path": root})


class ImportedCohort(BidsCohort):
    """Files in any format that SimpleITK reads, copied into BIDS first."""

    kind: Literal["import"]  # type: ignore[assignment]
    """`import`: listed in a table."""
    path: str
    """A TSV with the columns participant_id, image, label and, optionally, brain_mask,
    split and site; relative paths start at the table."""


Cohort = Annotated[PhantomCohort | BidsCohort | ImportedCohort, Field(discriminator="kind")]


# ------------------------------------------------------------------ patches


class Patches(Model):
    """Patches cut from the training patients (Kossen et al. 2022, section 3.1)."""

    size: Annotated[int, Field(ge=8, le=512)] = 24
    """Edge in voxels; patches lie in axial slices. The paper: 96."""
    per_patient: Annotated[int, Field(ge=2, le=100_000)] = 50
    """Patches per training patient; the paper takes 1,000."""
    vessel_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of them centred on a labelled voxel; the rest is centred anywhere in the region."""


# ------------------------------------------------------------------ generators


class RealGenerator(Model):
    """Hands the training patches through: the ceiling, with no privacy at all."""

    kind: Literal["real"]
    """`real`."""


class PhantomGenerator(Model):
    """Patches of public phantoms: the floor, at epsilon 0."""

    kind: Literal["phantom"]
    """`phantom`."""
    phantom: Phantom = Phantom()
    """What is drawn; nothing in it may come from the private cohort."""
    volumes: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Phantoms to cut the pairs from."""


class WganGenerator(Model):
    """The paper's Wasserstein GAN over image-label pairs."""

    # What the public stage does not read.
    PRIVATE_KEYS: ClassVar = frozenset({
        "generator_updates", "patient_batch_size", "patient_patches", "clip_norm",
        "label_threshold",
    })  # fmt: skip

    # What only sampling reads.
    SAMPLING_KEYS: ClassVar = frozenset({"label_threshold"})

    kind: Literal["wgan"]
    """`wgan`."""
    loop: Literal["valid", "as-published"] = "valid"
    """`valid`: a fresh Poisson batch per critic update, one noisy release each, a public
    number of fakes, a public divisor. `as-published`: one batch for all critic updates, two
    noisy steps each, divided by the realised batch size; to reproduce the paper only."""
    architecture: Literal["transposed", "upsampling"] = "transposed"
    """`transposed`: transposed convolutions only (the paper's code); `upsampling`: a linear
    layer, then nearest-neighbour upsampling and 5 x 5 convolutions (the paper's text)."""
    latent: Annotated[int, Field(ge=1, le=4096)] = 128
    """Dimension of the latent vector."""
    generator_width: Annotated[int, Field(ge=4, le=512)] = 16
    """Channels of the generator's last hidden layer, doubling inwards; the paper: 96."""
    critic_width: Annotated[int, Field(ge=4, le=512)] = 16
    """Channels of the critic's first layer, doubling onwards; the paper: 96."""
    learning_rate: Positive = 5e-4
    """RMSprop, both networks; the paper: 5e-5, which learns nothing in CPU minutes."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Expected private batch, the public divisor, and the number of fakes."""
    generator_updates: Annotated[int, Field(ge=1)] = 260
    """Generator updates; the paper: 50 epochs of 1,281."""
    critic_updates: Annotated[int, Field(ge=1, le=100)] = 5
    """Critic updates for each generator update."""
    patient_batch_size: Annotated[int, Field(ge=1)] = 8
    """With patient-eps-X: expected patients in a batch, the public divisor, and the number of
    groups of fakes."""
    patient_patches: Annotated[int, Field(ge=1)] = 8
    """With patient-eps-X: patches taken of each patient in a batch, and fakes in a group."""
    clip_norm: Positive = 1.0
    """Bound on the gradient norm of each patch, or patient (with privacy only)."""
    weight_clip: Positive = 0.01
    """Critic weights are clamped to this after each update."""
    public: PhantomGenerator | None = None
    """Phantoms to learn from before any private patch is seen; null, as in the paper, starts from
    nothing."""
    public_pairs: Annotated[int, Field(ge=1)] = 2000
    """Pairs of phantoms."""
    public_updates: Annotated[int, Field(ge=1)] = 300
    """Generator updates on them."""
    label_threshold: Annotated[float, Field(ge=-1, le=1)] = 0.3
    """A synthetic voxel is labelled where the second channel passes this; the paper: 0.8,
    which a network trained for minutes hardly ever reaches."""


class DiffusionGenerator(Model):
    """A denoising diffusion model over image-label pairs, taught by public phantoms first."""

    # What the public stage does not read.
    PRIVATE_KEYS: ClassVar = frozenset({
        "steps", "batch_size", "patient_batch_size", "patient_patches", "multiplicity",
        "learning_rate", "clip_norm", "tuned", "timesteps", "sampling_steps",
    })  # fmt: skip

    # What only sampling reads.
    SAMPLING_KEYS: ClassVar = frozenset({"sampling_steps"})

    kind: Literal["diffusion"]
    """`diffusion`."""
    channels: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...] = (8, 16, 32)
    """Channels of the denoiser's levels; between two levels the patch is halved."""
    public: PhantomGenerator | None = None
    """Phantoms to learn from before any private patch is seen; null starts from nothing."""
    public_pairs: Annotated[int, Field(ge=1)] = 2000
    """Pairs of phantoms."""
    public_steps: Annotated[int, Field(ge=1)] = 800
    """Steps on them."""
    public_batch_size: Annotated[int, Field(ge=1)] = 32
    """Pairs of phantoms in a step."""
    public_rate: Positive = 2e-3
    """Adam's rate on phantoms."""
    steps: Annotated[int, Field(ge=1)] = 150
    """Steps on private patches."""
    batch_size: Annotated[int, Field(ge=1)] = 48
    """Expected private patches in a step, and the public divisor."""
    patient_batch_size: Annotated[int, Field(ge=1)] = 8
    """With patient-eps-X: expected patients in a step, and the public divisor."""
    patient_patches: Annotated[int, Field(ge=1)] = 8
    """With patient-eps-X: patches taken of each patient in a step."""
    multiplicity: Annotated[int, Field(ge=1, le=128)] = 1
    """Noise levels at which a step shows each patch; their gradients are averaged, then clipped."""
    learning_rate: Positive = 1e-3
    """Adam's rate on private patches."""
    clip_norm: Positive = 0.5
    """Bound on the gradient norm of each patch, or patient (with privacy only)."""
    tuned: Literal["all", "late", "norms"] = "all"
    """What private steps move: all weights, the norms and the decoder, or the norms alone. Noise
    grows with the number of weights, and so does what can be learned."""
    timesteps: Range = (0.0, 1.0)
    """Part of the noise schedule, from clean to noise, that private steps draw from."""
    flips: bool = True
    """Mirror pairs at random along both axes."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the running average of the weights, which is what is kept."""
    sampling_steps: Annotated[int, Field(ge=2, le=1000)] = 10
    """Steps of the sampler (DPM-Solver++)."""

    @field_validator("timesteps")
    @classmethod
    def _within(cls, ends: Range) -> Range:
        if not 0 <= ends[0] < ends[1] - 0.01 <= 1:
            raise ValueError("two shares of the schedule, of 0 to 1, at least 0.01 apart")
        return ends

    @field_validator("channels")
    @classmethod
    def _levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not 2 <= len(channels) <= 6:
            raise ValueError("2 to 6 levels")
        return channels


class FittedGenerator(Model):
    """Phantoms whose settings follow a few private statistics: levels `none`, `patient-eps-X`."""

    # What the public stage does not read.
    PRIVATE_KEYS: ClassVar = frozenset({"volumes", "clip_norm", "bandwidth"})

    kind: Literal["fitted"]
    """`fitted`."""
    phantom: Phantom
    """What is drawn; the ranges under `vary` are what may be fitted, and are public."""
    volumes: Annotated[int, Field(ge=1, le=10_000)] = 40
    """Phantoms to cut the pairs from, each of its own settings."""
    candidates: Annotated[int, Field(ge=20, le=100_000)] = 120
    """Public phantoms that show what settings do to patches."""
    directions: Annotated[int, Field(ge=1, le=8)] = 4
    """Numbers that are asked of the private patients."""
    clip_norm: Positive = 3.0
    """Bound on a patient's numbers, of which phantoms have deviation 1."""
    bandwidth: Positive = 0.5
    """How far phantoms may lie from the private mean, in the same unit."""

    @field_validator("phantom")
    @classmethod
    def _has_ranges(cls, phantom: Phantom) -> Phantom:
        if not phantom.vary:
            raise ValueError("phantom.vary must hold at least one range: what may be fitted")
        return phantom


Generator = Annotated[
    RealGenerator | PhantomGenerator | WganGenerator | DiffusionGenerator | FittedGenerator,
    Field(discriminator="kind"),
]
# Those that may learn from public phantoms first.
STARTED = (WganGenerator, DiffusionGenerator, FittedGenerator)
UNTAUGHT = ("real", "phantom")  # kinds that learn nothing, and so have no privacy level


# ------------------------------------------------------------------ segmentation


class Grid(Model):
    """The U-Nets trained on each synthetic set: every combination."""

    learning_rate: Annotated[tuple[Positive, ...], Field(min_length=1)] = (3e-3,)
    """Adam's rates; the paper: 1e-4 and 8e-5."""
    dropout: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (
        0.0,
    )
    """Dropout between the two convolutions of a level; the paper: 0 and 0.1."""
    augment: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    """Rotation up to 30 degrees, shear up to 20, vertical flip; the paper: on and off."""

    def cells(self) -> list[str]:
        """Names of the cells, as they stand in paths."""
        return [
            f"lr-{rate:g}_dropout-{dropout:g}_augment-{'on' if augment else 'off'}"
            for rate in self.learning_rate
            for dropout in self.dropout
            for augment in self.augment
        ]

    @staticmethod
    def parse(cell: str) -> tuple[float, float, bool]:
        """The (learning rate, dropout, augment) that a cell's name stands for."""
        match = re.fullmatch(r"lr-(.+)_dropout-(.+)_augment-(on|off)", cell)
        if match is None:
            raise ValueError(f"grid cell {cell!r}: expected lr-X_dropout-X_augment-on|off")
        return float(match[1]), float(match[2]), match[3] == "on"


class Segmentation(Model):
    """The U-Net (Livne et al. 2019) and how it is applied."""

    channels: tuple[Annotated[int, Field(ge=1)], ...] = (8, 16, 32)
    """Channels per level; the paper: 32, 64, 128, 256, 512."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Pairs per step; the paper: 64."""
    steps: Annotated[int, Field(ge=1)] = 300
    """Optimiser steps; the paper: 15 epochs of 2 N / 64."""
    loss: Literal["dice", "dice-ce"] = "dice-ce"
    """`dice`: minus Dice, as in the paper; `dice-ce`: with the cross-entropy added, without which
    quick rates may end with no foreground at all, or nothing else."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the steps: `constant` as in the paper, or rising over a tenth of them and
    then falling to 0 by half a `cosine`, which is better where steps are few."""
    grid: Grid = Grid()
    """U-Nets per synthetic set; the best on real validation patients is tested."""
    stride: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Step between tiles at inference, as a share of the patch; 1 as in the paper,
    smaller values average overlapping tiles."""
    tolerance: Positive = 1.0
    """NSD: distance between borders, in mm, that counts as agreement."""

    @field_validator("channels")
    @classmethod
    def _deep_enough(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not 2 <= len(channels) <= 6:
            raise ValueError("2 to 6 levels")
        return channels


class Task(Model):
    """What a generator is asked to be. Public facts only: nothing here is counted on data."""

    settings: Generator
    """How to build and train it."""
    level: PrivacyLevel
    """How private to be."""
    seed: int
    """Seed of every draw while training."""
    size: int
    """Edge of a patch in voxels."""
    records: int
    """Public number of private patches; sampling rate and delta follow from it."""
    patients: int
    """Public number of training patients."""
    per_patient: int
    """Most patches that one patient holds."""
    delta: float
    """Delta of the guarantee."""
    budget: float | None = None
    """Epsilon per unit at which training stops."""
    noise: Literal["seeded", "secure"] = "seeded"
    """Where batches and noise come from."""

    def of_start(self) -> dict[str, Any]:
        """What the public stage reads, as JSON values: what a public start is of."""
        settings = self.settings
        assert isinstance(settings, STARTED)
        read = settings.model_dump(mode="json", exclude=set(settings.PRIVATE_KEYS))
        return {"settings": read, "size": self.size}


# ------------------------------------------------------------------ the study


class Points(Model):
    """Points of the study: one generator at several privacy levels and seeds."""

    generator: Name
    """A name under `generators`."""
    privacy: tuple[str, ...] = ("none",)
    """Levels: `none`, `sigma-X` (noise multiplier, unit patch), `eps-X` (calibrated, unit
    patch) or `patient-eps-X` (calibrated, unit patient)."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """One generator is trained for each seed."""

    @field_validator("privacy")
    @classmethod
    def _levels(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_privacy(level) for level in levels)


# pydantic warns of the name of `privacy.register`, which its models have as a method of classes.
warnings.filterwarnings("ignore", 'Field name "register" in "Privacy"')


class Privacy(Model):
    """What every epsilon in the study is stated against."""

    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Delta of sigma-X and eps-X; by default 1 / (training patients x patches.per_patient)."""
    patient_delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Delta of patient-eps-X; by default 0.1 / training patients."""
    budget: Positive | None = None
    """Epsilon, per patch or patient as the level says, that no private generator may pass:
    training stops before the step that would, and the ledger says so. It bounds the total of a
    patient over all accesses in the register as well: a training that would pass it is refused
    with `noise: secure`, and told of with `seeded`."""
    noise: Literal["seeded", "secure"] = "seeded"
    """`seeded`: batches and noise follow from the study's seed, so that every run repeats;
    `secure`: from a cipher keyed by the operating system, for what is to be released."""

    register: str = "register"
    """Folder of the register: every access to private patients, kept for good, outside the
    results. Studies of the same patients share it. `${VARIABLES}` are expanded."""
    again: dict[PointName, Literal["keep", "train"]] = {}
    """Private points with `noise: secure` whose training patients have changed since they were
    trained: `keep` goes on with the finished result, `train` trains again, and then both count."""

    @field_validator("register")
    @classmethod
    def _expand(cls, path: str) -> str:
        return expand(path)


class Audit(Model):
    """The attack on every private point's mechanism."""

    canaries: Annotated[int, Field(ge=100, le=100_000)] = 4096
    """Canaries in one rehearsal of the training: more of them find more, up to the ceiling that
    every row of audit.tsv states."""


class Fidelity(Model):
    """How synthetic pairs are compared with real ones."""

    inception: str | None = None
    """File with Inception-v3 as TorchScript (`inception-2015-12-05.pt` of StyleGAN), for the FID;
    without one it is not computed. `${VARIABLES}` are expanded."""
    inception_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 that the file must have."""

    @field_validator("inception")
    @classmethod
    def _expand(cls, path: str | None) -> str | None:
        return None if path is None else expand(path)

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.inception is None) != (self.inception_sha256 is None):
            raise ValueError("inception and inception_sha256 go together: give both or neither")
        return self


class Release(Model):
    """What leaves the building, and what its card says."""

    points: tuple[PointName, ...] = ()
    """Points that `snakemake release` bundles, as in paths: `fitted/patient-eps-1/seed-0`."""
    signed: dict[PointName, Annotated[str, Field(min_length=20)]] = {}
    """Points that may leave although their epsilon per patient is above 10, or their delta is 1 /
    patients or more: for each, who answers for it and why, in words that the card will print."""
    scores: bool = False
    """Print mean scores on the card, though no statement covers test and validation patients. Of a
    cohort of phantoms they are always printed."""
    title: str = "Synthetic image-label pairs"
    """Title of the card."""
    description: str = "Labelled image patches, made by a generator that was trained under privacy."
    """A sentence or two on what is shown: anatomy, modality, label."""
    organ: str = ""
    """For lists of models."""
    modality: str = ""
    """For lists of models."""
    creator: str = ""
    """Who answers for the release."""
    url: str | None = None
    """Where it is to be found."""
    licence: str = "CC-BY-4.0"
    """Its SPDX identifier."""


SMALL = {"shape": (96, 108, 26), "zooms": (1.0, 1.0, 1.6)}
"""Geometry of the demonstration's phantoms."""
OF_FIRST = Phantom(
    **SMALL,
    vessels=Vessels(branches=120, trunk_radius=(1.9, 2.6), least_radius=0.5),
    scanner=Scanner(vessel=(2.0, 2.4), texture=0.03, blur=0.4, noise=0.05, bias=0.1, skull=1.2),
)
"""A scanner with fainter vessels, less blur, noise and texture than most public phantoms have."""
PUBLIC = PhantomGenerator(
    kind="phantom",
    volumes=24,
    phantom=Phantom(
        **SMALL,
        vessels=Vessels(branches=120, trunk_radius=(1.2, 2.8), tortuosity=0.4),
        scanner=Scanner(vessel=(1.8, 2.8), noise=0.06, blur=0.7, texture=0.03, bias=0.3, skull=1.0),
        vary={
            "vessels.branches": (40, 200),
            "vessels.tortuosity": (0.1, 0.6),
            "vessels.least_radius": (0.25, 0.6),
            "vessels.trunk_radius": (1.2, 2.8),
            "scanner.vessel": (1.5, 4.0),
            "scanner.texture": (0.0, 0.3),
            "scanner.skull": (0.5, 3.0),
            "scanner.blur": (0.2, 1.5),
            "scanner.noise": (0.01, 0.3),
            "scanner.bias": (0.0, 0.6),
        },
    ),
)
"""The demonstration's public phantoms: wide ranges, of somebody who does not know the scanner."""


class Study(Model):
    """A whole study. Every key has a default; a study file states what differs."""

    name: Name = "demo"
    """Name of the study, for the report's title."""
    note: str = (
        "A demonstration that fits two CPU cores: 40 small phantom patients, patches and networks "
        "smaller than the paper's; the WGAN's learning rate is ten times the paper's, which learns "
        "nothing in minutes, and its label threshold is 0.3 instead of 0.8. Scores show "
        "directions, not clinical values."
    )
    """A sentence or two printed at the top of the report."""
    seed: Annotated[int, Field(ge=0)] = 2022
    """Every random draw derives from this and the result's path."""
    cohort: Name = "first"
    """The private cohort: its training patients teach the generators."""
    external: tuple[Name, ...] = ("second",)
    """Cohorts that serve as further test sets only."""
    cohorts: dict[Name, Cohort] = {
        "first": PhantomCohort(
            kind="phantom", splits=Splits(train=40, validation=3, test=5), phantom=OF_FIRST
        ),
        "second": PhantomCohort(
            kind="phantom",
            seed=2,
            splits=Splits(train=0, validation=0, test=3),
            phantom=OF_FIRST.with_values({"scanner.noise": 0.1, "scanner.bias": 0.22}),
        ),
    }
    """The cohorts, by name."""
    patches: Patches = Patches()
    """How patches are cut."""
    generators: dict[Name, Generator] = {
        "fitted": FittedGenerator(kind="fitted", phantom=PUBLIC.phantom),
        "real": RealGenerator(kind="real"),
        "phantom": PUBLIC,
        "diffusion": DiffusionGenerator(kind="diffusion", public=PUBLIC),
        "wgan": WganGenerator(kind="wgan"),
        "wgan-as-published": WganGenerator(kind="wgan", loop="as-published"),
    }
    """The generators, by the name they have in paths."""
    pairs: Annotated[int, Field(ge=16, le=10_000_000)] = 2000
    """Pairs in each synthetic set; the paper: 41,000."""
    privacy: Privacy = Privacy()
    """Privacy accounting."""
    audit: Audit = Audit()
    """Attacks on the claims."""
    fidelity: Fidelity = Fidelity()
    """How synthetic pairs are compared with real ones."""
    segmentation: Segmentation = Segmentation()
    """U-Nets."""
    release: Release = Release(points=("fitted/patient-eps-1/seed-0",))
    """Bundles to publish."""
    points: tuple[Points, ...] = (
        Points(generator="fitted", privacy=("patient-eps-1",)),
        Points(generator="phantom"),
        Points(generator="real"),
        Points(generator="diffusion", privacy=("none", "eps-10")),
        Points(generator="wgan", privacy=("sigma-0.65",)),
        Points(generator="wgan-as-published", privacy=("sigma-0.65",)),
    )
    """What the study consists of."""

    def task(self, cohort: str, generator: str, privacy: str, seed: int) -> Task:
        """What one point of the study asks of its generator; `seed` is the derived one."""
        patients, level = self.cohorts[cohort].splits.train, PrivacyLevel.parse(privacy)
        records = patients * self.patches.per_patient
        return Task(
            settings=self.generators[generator],
            level=level,
            seed=seed,
            size=self.patches.size,
            records=records,
            patients=patients,
            per_patient=self.patches.per_patient,
            delta=self.privacy.patient_delta or 0.1 / patients
            if level.unit == "patient"
            else self.privacy.delta or 1 / records,
            budget=self.privacy.budget,
            noise=self.privacy.noise,
        )

    def starts(self, generator: str) -> bool:
        """Whether a generator learns from public phantoms first."""
        settings = self.generators[generator]
        if isinstance(settings, WganGenerator | DiffusionGenerator):
            return settings.public is not None
        return settings.kind == "fitted"

    def start_task(self, generator: str, seed: int) -> Task:
        """What the public stage of a generator is asked. Settings that it does not read are at
        their defaults, and no count is of a cohort, so that their change makes no new start."""
        task = Task(
            settings=self.generators[generator], level=PrivacyLevel.parse("none"), seed=seed,
            size=self.patches.size, records=1, patients=1, per_patient=1, delta=0.5,
        )  # fmt: skip
        read = type(task.settings).model_validate(task.of_start()["settings"])
        return task.model_copy(update={"settings": read})

    def check_point(self, cohort: str, generator: str, privacy: str) -> None:
        """Raise ValueError unless this point can be made."""
        if cohort not in self.cohorts:
            raise ValueError(f"cohort {cohort!r}: {_allowed(cohort, self.cohorts)}")
        splits = self.cohorts[cohort].splits
        if splits.train < 1 or splits.validation < 1:
            raise ValueError(
                f"cohorts.{cohort}.splits: a private cohort needs at least 1 training and 1 "
                f"validation patient, not {splits.train} and {splits.validation}"
            )
        if generator not in self.generators:
            raise ValueError(f"generator {generator!r}: {_allowed(generator, self.generators)}")
        level = PrivacyLevel.parse(privacy)
        kind = self.generators[generator].kind
        if level.kind != "none" and kind in UNTAUGHT:
            raise ValueError(
                f"privacy level {privacy!r} with generator {generator!r}: allowed is 'none' "
                + ("(it has no privacy)" if kind == "real" else "(it reads nothing private)")
            )
        if kind == "fitted" and level.kind in ("sigma", "eps"):
            raise ValueError(
                f"privacy level {privacy!r} with generator {generator!r}: allowed are 'none' and "
                "'patient-eps-X' (it asks each patient once, and knows no patches)"
            )
        settings = self.generators[generator]
        published = isinstance(settings, WganGenerator) and settings.loop == "as-published"
        if published and level.unit == "patient":
            raise ValueError(
                f"privacy level {privacy!r} with generator {generator!r}: allowed are 'none', "
                "'sigma-X' and 'eps-X' (the as-published loop knows no patients)"
            )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, name in [("cohort", self.cohort), *(("external", e) for e in self.external)]:
            if name not in self.cohorts:
                raise ValueError(f"{key}: {name!r} is no cohort: {_allowed(name, self.cohorts)}")
        if self.cohort in self.external or len(set(self.external)) != len(self.external):
            raise ValueError("external: each cohort once, and not the private one")
        for key, names in (("cohorts", self.cohorts), ("generators", self.generators)):
            if taken := RESERVED_NAMES & set(names):
                raise ValueError(f"{key}: {min(taken)!r} is taken; allowed is any other name")
        for points in self.points:
            for level in points.privacy:
                self.check_point(self.cohort, points.generator, level)
            self._check_size(points.generator)
        # The demonstration's releases are asked of no study that has other generators.
        for place in self.release.points if "release" in self.model_fields_set else ():
            self.check_point(self.cohort, *place.split("/")[:2])
        return self

    def _check_size(self, generator: str) -> None:
        size, depth = self.patches.size, len(self.segmentation.channels) - 1
        if size % 2**depth:
            raise ValueError(
                f"patches.size: {size} does not halve {depth} times, as "
                f"segmentation.channels asks; allowed are multiples of {2**depth}"
            )
        settings = self.generators[generator]
        halvings = len(settings.channels) - 1 if isinstance(settings, DiffusionGenerator) else 0
        if size % 2**halvings:
            raise ValueError(
                f"patches.size: {size} does not halve {halvings} times, as "
                f"generators.{generator}.channels asks; allowed are multiples of {2**halvings}"
            )
        if settings.kind == "wgan" and wgan_levels(size) is None:
            raise ValueError(
                f"patches.size: {size} with generator {generator!r}; allowed are 16, 24, 32, 48, "
                "64, 96, 128, 192, 256 and 384"
            )


def wgan_levels(size: int) -> tuple[int, int] | None:
    """(first size, doublings) of a network that ends at `size` pixels, or None.

    96 gives (3, 5), as in the paper: 3, 6, 12, 24, 48, 96.
    """
    for first in (2, 3):
        doublings = round(math.log2(size / first))
        if first * 2**doublings == size and doublings >= 3:
            return first, doublings
    return None


# ------------------------------------------------------------------ loading, with good errors


def check_file(path: Path) -> None:
    """Raise ConfigError if a key stands twice in a file, of which the last would be taken."""
    # Whoever calls has read the file, as JSON if need be, in which tabs may stand.
    text = path.read_text(encoding="utf-8").replace("\t", " ")
    if faults := list(_repeated(yaml.compose(text), set())):
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))


def _repeated(node: Any, seen: set[int]) -> Iterator[str]:
    """Keys given twice below a node of YAML, which aliases may make part of many others."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
        return
    keys: set[str] = set()
    for key, value in node.value:
        if key.value in keys:
            line = key.start_mark.line + 1
            yield f"{key.value}: given again in line {line}; allowed: each key once"
        keys.add(key.value)
        yield from _repeated(value, seen)


def keep_whole(raw: dict[str, Any], path: Path) -> None:
    """Let every `vary` of a study file replace what was there, in the mapping it was merged into.

    The workflow engine merges key by key: a study's phantoms would vary in what the demonstration's
    do as well.
    """
    for place, ranges in _named_vary(yaml.safe_load(path.read_text(encoding="utf-8")) or {}):
        inner = raw
        for key in place[:-1]:
            inner = inner[key]
        inner["vary"] = ranges


def _named_vary(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key == "vary":
            yield (*place, key), value
        else:
            yield from _named_vary(value, (*place, key))


def load(raw: Mapping[str, Any]) -> Study:
    """Build the study, or raise ConfigError naming key, value and what is allowed."""
    try:
        return Study.model_validate(dict(raw))
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault)}" for fault in error.errors())
        raise ConfigError(f"the configuration has faults:\n{faults}") from None


def _allowed(given: str, names: Any) -> str:
    names = sorted(names)
    close = difflib.get_close_matches(given, names, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"allowed are {', '.join(map(repr, names))}{hint}"


def _explain(fault: Any) -> str:
    place = list(fault["loc"])
    if place and place[0] in ("cohorts", "generators"):
        del place[2:3]  # the union's tag, which is no key of the file
    key = ".".join(map(str, place)) or "study"
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_allowed(str(place[-1]), _siblings(fault['loc']))}"
    text = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "union_tag_not_found":
        text = "kind is missing; allowed is one of those that config/README.md lists"
    given = fault["input"]
    shown = "" if isinstance(given, dict | Study) else f" (given: {BRIEF.repr(given)})"
    return f"{key}: {text}{shown}"


def _siblings(location: tuple[Any, ...]) -> list[str]:
    """Keys allowed where an unknown one was found, by walking the models."""
    models: list[type[BaseModel]] = [Study]
    for step in location[:-1]:
        if len(models) > 1:
            tagged = [m for m in models if step in get_args(m.model_fields["kind"].annotation)]
            models = tagged or models
        elif step in models[0].model_fields:
            models = list(models_in(models[0].model_fields[step].annotation))
    return sorted({name for model in models for name in model.model_fields})


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)
