"""Write a bundle that one can publish: pairs, card, ledger, model, checksums (floor 5).

Privacy: a bundle holds what went through the ledger (pairs and weights), its statement, audits of
the mechanism, which read no patient, and rounded mean scores on test patients, who took no part in
training and whom the statement does not cover. What would void it: releasing more points on the
same patients than the card names.
"""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from veil import artifacts, config
from veil.privacy import randomness
from veil.release import scan
from veil.report import tables

FORMAT = "http://mlcommons.org/croissant/1.0"
CROISSANT = (
    "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format "
    "includes isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated "
    "replace samplingRate separator source subField transform"
)
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: f"cr:{name}" for name in CROISSANT.split()}, "conformsTo": "dct:conformsTo",
}  # fmt: skip
PNGS = "data/train"
"""Where the pairs lie as PNG, laid out as `datasets` finds images by itself."""


SIZES = {1000: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
STATED = (
    "guarantee", "epsilon", "epsilon_patient", "delta", "unit", "neighbouring_relation", "sampling",
    "noise_multiplier", "accountant", "text",
)  # fmt: skip


class ReleaseError(artifacts.ArtifactError):
    """A point that must not leave."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What is to leave, and what is said of it."""

    name: str
    """As `diffusion-eps-10-seed-0`."""
    about: config.Release
    task: config.Task
    pairs: np.ndarray
    """uint8 (N, 2, H, W)."""
    weights: Mapping[str, Tensor]
    statement: Mapping[str, Any]
    audits: pd.DataFrame
    scores: pd.DataFrame
    """One row a test cohort and metric: `test_cohort`, `metric`, `mean`, `sd`, `patients`."""
    others: Mapping[str, Mapping[str, Any]]
    """Statements of the points on the same patients that are released too, by their names."""

    @property
    def together(self) -> tuple[float, float]:
        """Epsilon per patient and delta of all releases: their sums (Dwork and Roth, thm. 3.16)."""
        every = [self.statement, *self.others.values()]
        return (
            sum(bound(one["epsilon_patient"]) for one in every),
            sum(one.get("delta", 0.0) for one in every),
        )


def bound(epsilon: float | None) -> float:
    """An epsilon of a statement, which says None where there is no finite one."""
    return float("inf") if epsilon is None else epsilon


def check(statement: Mapping[str, Any], public: bool, name: str) -> None:
    """Raise ReleaseError unless a point with this privacy statement may leave.

    `public` says whether its patients are phantoms.
    """
    guarantee, loop = statement["guarantee"], statement.get("loop")
    if guarantee not in ("public", "differential privacy") or loop == "as-published":
        what = loop if loop == "as-published" else guarantee
        raise ReleaseError(
            f"{name}: guarantee is {what!r}; allowed for a release: a generator of public "
            "phantoms, or differential privacy by a valid loop"
        )
    secure = statement.get("noise") == randomness.description("secure")
    if guarantee != "public" and not secure and not public:
        raise ReleaseError(
            f"{name}: the noise is {statement.get('noise')!r}; allowed for a release: that of "
            "privacy: {noise: secure}. Whoever guesses the seed of seeded noise can take it off; "
            "train anew"
        )


def write(folder: Path, bundle: Bundle, tokens: Iterable[str]) -> None:
    """Build the bundle beside `folder`, scan it for `tokens`, and only then give it that name."""
    temporary = folder.with_name(f".{uuid.uuid4().hex[:8]}.{folder.name}")
    try:
        build(temporary, bundle)
        scan.refuse_leaks(temporary, tokens)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_sums(sums: Path) -> None:
    """Raise ArtifactError unless a bundle's files are those that its SHA256SUMS lists."""
    lines = sums.read_bytes().decode(errors="replace").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {
        path.relative_to(sums.parent).as_posix(): artifacts.file_hash(path)
        for path in sums.parent.rglob("*")
        if path.is_file() and path != sums and not path.name.startswith(".snakemake")
    }
    if faults := sorted({name for name, _ in listed.items() ^ found.items()}):
        raise artifacts.ArtifactError(
            f"{sums}: does not describe {', '.join(faults)}; allowed: the files as they were "
            "released. Restore them, or delete the bundle to have it made again"
        )


def build(folder: Path, bundle: Bundle) -> None:
    """All files of the bundle."""
    _write_pngs(folder / PNGS, bundle.pairs)
    for channel, name in enumerate(("images", "labels")):
        voxels = np.ascontiguousarray(bundle.pairs[:, channel].transpose(1, 2, 0))
        packed = gzip.compress(scan.nifti_bytes(voxels), mtime=0)
        _write(folder / "nifti" / f"{name}.nii.gz", packed)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in bundle.weights.items()}
    _write(folder / "model" / "weights.safetensors", save(held))
    artifacts.write_sealed(folder / "privacy.json", bundle.statement)
    artifacts.write_json(folder / "model" / "entry.json", model_entry(bundle))
    artifacts.write_text(folder / "README.md", card(bundle))
    artifacts.write_json(folder / "croissant.json", croissant(folder, bundle))
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    sums = "".join(f"{artifacts.file_hash(folder / name)}  {name}\n" for name in names)
    artifacts.write_text(folder / "SHA256SUMS", sums)


def _write(path: Path, content: bytes) -> None:
    with artifacts.whole(path) as temporary:
        temporary.write_bytes(content)


def _write_pngs(folder: Path, pairs: np.ndarray) -> None:
    """Images as they are and labels as 0 and 255, with the table that pairs them."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    lines = []
    for number, (image, label) in enumerate(pairs):
        file = f"{number:06d}.png"
        # Axes are x and y, as in a volume: a picture has y first.
        Image.fromarray(image.T).save(folder / "images" / file)
        Image.fromarray(label.T * 255).save(folder / "labels" / file)
        names = {f"{kind}_file_name": f"{kind}s/{file}" for kind in ("image", "label")}
        lines.append(json.dumps(names) + "\n")
    artifacts.write_text(folder / "metadata.jsonl", "".join(lines))


def card(bundle: Bundle) -> str:
    """The data card, with the front matter that Hugging Face reads."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    count, _, width, height = bundle.pairs.shape
    size = next((text for most, text in SIZES.items() if count < most), "n>1M")
    epsilon, delta = bundle.together
    return environment.get_template("card.md.j2").render(
        bundle=bundle, about=bundle.about, count=count,
        statement={
            **bundle.statement,
            **{name: bound(bundle.statement[name]) for name in ("epsilon", "epsilon_patient")},
        }, width=width,
        height=height, size=size, names=tables.METRICS, epsilon=epsilon, delta=delta,
        audits=bundle.audits.to_dict("records"), scores=bundle.scores.to_dict("records"),
    )  # fmt: skip


def croissant(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """A description of the bundle by Croissant 1.0, whose files are found beside it."""

    def file(name: str, kind: str) -> dict[str, Any]:
        return {
            "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name,
            "encodingFormat": kind, "sha256": artifacts.file_hash(folder / name),
        }  # fmt: skip

    creator, pairs = bundle.about.creator, f"{PNGS}/metadata.jsonl"
    fields = [
        {
            "@type": "cr:Field", "@id": f"pairs/{kind}", "name": kind, "dataType": "sc:Text",
            "description": f"File of the {kind}, below {PNGS}.",
            "source": {"fileObject": {"@id": pairs}, "extract": {"column": f"{kind}_file_name"}},
        }
        for kind in ("image", "label")
    ]  # fmt: skip
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": FORMAT,
        "name": bundle.name,
        "description": f"{bundle.about.title}. {bundle.about.description} "
        f"Privacy: {bundle.statement['text']}.",
        "license": bundle.about.licence,
        **({"url": bundle.about.url} if bundle.about.url else {}),
        **({"creator": {"@type": "sc:Organization", "name": creator}} if creator else {}),
        "version": "1.0.0",
        "rai:personalSensitiveInformation": bundle.statement["text"],
        "distribution": [
            file(pairs, "application/jsonlines"),
            file("privacy.json", "application/json"),
            file("nifti/images.nii.gz", "application/gzip"),
            file("nifti/labels.nii.gz", "application/gzip"),
            file("model/weights.safetensors", "application/octet-stream"),
        ],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "pairs", "name": "pairs", "field": fields}
        ],
    }  # fmt: skip


def model_entry(bundle: Bundle) -> dict[str, Any]:
    """An entry for a list of models, in the fields of medigan's template."""
    about, settings = bundle.about, bundle.task.settings.model_dump(mode="json")
    dsc = bundle.scores[bundle.scores.metric == "dsc"]
    mean = round(float(dsc["mean"].iloc[0]), 2) if len(dsc) else None
    return {
        bundle.name: {
            "execution": {
                "package_name": "veil",
                "package_link": about.url,
                "model_name": "weights",
                "extension": ".safetensors",
                "image_size": [bundle.task.size, bundle.task.size],
                "dependencies": ["torch", "diffusers", "safetensors"],
                "generate_method": {
                    "name": "sample",
                    "args": {"base": ["pairs", "seed", "device", "threads"], "custom": settings},
                },
            },
            "selection": {
                "performance": {
                    "downstream_task": {"SEG": {"trained_on_fake": {"dice": mean}}}
                },
                "organ": [about.organ],
                "modality": [about.modality],
                "generates": ["image", "label"],
                "height": bundle.task.size,
                "width": bundle.task.size,
                "depth": 1,
                "type": settings["kind"],
                "license": about.licence,
                "privacy_preservation": {
                    key: bundle.statement[key] for key in STATED if key in bundle.statement
                },
            },
            "description": {
                "title": about.title,
                "version": "1.0.0",
                "comment": about.description,
            },
        }
    }  # fmt: skip
