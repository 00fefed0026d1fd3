"""Write a bundle that one can publish: pairs, card, ledger, model, checksums (floor 5).

Privacy: a bundle holds what went through the ledger (pairs and weights), its statement, and audits
of the mechanism, which read no patient. Scores of real test patients, whom no statement covers, are
in it only where the configuration asks for them. What would void it: releases of the same patients
that are not in the register.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
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
from veil.privacy.ledger import Statement
from veil.privacy.register import Total
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
SUMS = "SHA256SUMS"
PNGS = "data/train"
"""Where the pairs lie as PNG, laid out as `datasets` finds images by itself."""


SIZES = {1000: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
STATED = (
    "guarantee", "epsilon", "epsilon_patient", "delta", "epsilon_strict", "epsilon_patient_strict",
    "delta_strict", "unit", "neighbouring_relation", "sampling", "noise_multiplier", "accountant",
    "text",
)  # fmt: skip
log = logging.getLogger("veil")


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
    statement: Statement
    audits: pd.DataFrame
    scores: pd.DataFrame
    """One row a test cohort and metric: `test_cohort`, `metric`, `mean`, `sd`, `patients`."""
    others: tuple[str, ...] = ()
    """Names of the points on the same patients that were released too, or will be."""
    together: Total | None = None
    """What all of them come to; None for public ones."""
    signature: str | None = None
    """Who lets it out beyond the ceiling, and why."""


def bound(epsilon: float | None) -> float:
    """An epsilon of a statement, which says None where there is no finite one."""
    return float("inf") if epsilon is None else epsilon


def check(
    stated: Mapping[str, Any], public: bool, name: str, signature: str | None = None,
    together: Total | None = None,
) -> None:  # fmt: skip
    """Raise ReleaseError unless a point with this privacy statement may leave.

    `public` says whether its patients are phantoms, `signature` is what the configuration says for
    a point beyond the ceiling, and `together` what all releases of the patients come to.
    """
    try:
        statement = Statement.of(stated)
    except ValueError as error:
        raise ReleaseError(f"{name}: {error}; train it anew") from None
    if statement.guarantee == "public":
        return
    if statement.guarantee != "differential privacy" or statement.holds != "bound":
        what = statement.loop if statement.holds != "bound" else statement.guarantee
        raise ReleaseError(
            f"{name}: guarantee is {what!r}; allowed for a release: a generator of public "
            "phantoms, or differential privacy by a valid loop"
        )
    if statement.noise_source != "secure" and not public:
        raise ReleaseError(
            f"{name}: the noise is {statement.noise_source!r}; allowed for a release: 'secure', by "
            "privacy: {noise: secure}. Whoever guesses the seed of seeded noise can take it off: "
            "train anew"
        )
    if not signature and (beyond := beyond_ceiling(statement, together)):
        raise ReleaseError(
            f"{name}: {beyond}; allowed for a release: epsilon per patient to {tables.CEILING:g}, "
            "at a delta below 1 / patients. Whoever answers for letting it out all the same says "
            f"so in words: release: {{signed: {{{'/'.join(Path(name).parts[-3:])}: WHO AND WHY}}}}"
        )


def beyond_ceiling(statement: Statement, together: Total | None) -> str:
    """What of a statement, or of all releases together, says little about a person."""
    found = []
    epsilon, delta, patients = statement.epsilon_patient, statement.delta, statement.patients
    if bound(epsilon) > tables.CEILING:
        found.append(f"epsilon per patient is {bound(epsilon):.3g} at delta {delta:.3g}")
    if patients is None or delta >= 1 / patients:
        found.append(f"delta is {delta:.3g}, which allows to give away one of {patients} patients")
    if together and together.accesses > 1 and together.epsilon > tables.CEILING:
        found.append(
            f"with the releases before it epsilon per patient is {together.epsilon:.3g} at delta "
            f"{together.delta:.3g}"
        )
    return "; ".join(found)


def write(
    folder: Path, bundle: Bundle, tokens: Iterable[str],
    sign_out: Callable[[str], None] = lambda sums: None,
) -> None:  # fmt: skip
    """Build the bundle beside `folder`, scan it for `tokens`, and only then give it that name.

    `sign_out` is called with the hash of its checksums when it is about to leave. ReleaseError if
    a bundle is there already: none is ever overwritten.
    """
    temporary = folder.with_name(f".{uuid.uuid4().hex[:8]}.{folder.name}")
    try:
        build(temporary, bundle)
        scan.refuse_leaks(temporary, tokens)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if is_there(folder):
            raise ReleaseError(f"{folder}: a bundle is there; allowed: move it away")
        sign_out(artifacts.file_hash(temporary / SUMS))
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_there(folder: Path) -> bool:
    """Whether a bundle was released to this folder."""
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def stays(folder: Path, signed_out: Collection[str] | None) -> None:
    """Leave a bundle as it was released, with its checksums written anew where they are gone.

    ReleaseError unless it still is what one of `signed_out`, hashes of checksums, was made of;
    of public bundles, which are in no register (None), whatever is there stays.
    """
    (folder / SUMS).unlink(missing_ok=True)
    text = checksums(folder)
    if signed_out is not None and hashlib.sha256(text.encode()).hexdigest() not in signed_out:
        raise ReleaseError(
            f"{folder}: is not what was released of this training, by the register: damaged, or of "
            "another training; allowed: restore it, or move it away to release the point anew"
        )
    artifacts.write_text(folder / SUMS, text)
    log.warning(
        "%s: was released before and stays as it is. To release it anew, move it away: it is of "
        "the same training, and costs nothing more", folder,
    )  # fmt: skip


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
    artifacts.write_sealed(folder / "privacy.json", public_part(bundle.statement))
    artifacts.write_json(folder / "model" / "entry.json", model_entry(bundle))
    artifacts.write_text(folder / "README.md", card(bundle))
    artifacts.write_json(folder / "croissant.json", croissant(folder, bundle))
    artifacts.write_text(folder / SUMS, checksums(folder))


def public_part(statement: Statement) -> dict[str, Any]:
    """A statement without the name of its entry in the register, which names study and cohort."""
    return statement.model_copy(update={"access": None}).as_dict()


def checksums(folder: Path) -> str:
    """What stands in a bundle's SHA256SUMS: its files, by name."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != SUMS and not path.name.startswith(".snakemake")
    )
    return "".join(f"{artifacts.file_hash(folder / name)}  {name}\n" for name in names)


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
    statement = public_part(bundle.statement)
    return environment.get_template("card.md.j2").render(
        bundle=bundle, about=bundle.about, count=count,
        statement={
            **statement, **{k: bound(v) for k, v in statement.items() if k.startswith("epsilon")},
        }, width=width,
        height=height, size=size, names=tables.METRICS,
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
        f"Privacy: {bundle.statement.text}.",
        "license": bundle.about.licence,
        **({"url": bundle.about.url} if bundle.about.url else {}),
        **({"creator": {"@type": "sc:Organization", "name": creator}} if creator else {}),
        "version": "1.0.0",
        "rai:personalSensitiveInformation": bundle.statement.text,
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
                    key: value
                    for key, value in bundle.statement.as_dict().items()
                    if key in STATED
                },
            },
            "description": {
                "title": about.title,
                "version": "1.0.0",
                "comment": about.description,
            },
        }
    }  # fmt: skip
