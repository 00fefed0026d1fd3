"""What leaves: bundles that open everywhere, and nothing that identifies anybody."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import mlcroissant
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from PIL import Image, PngImagePlugin

from veil import artifacts, config
from veil.cohorts import bids
from veil.privacy import ledger, randomness
from veil.release import bundle, identifiers, scan

SECRET = "Zaphod-Beeblebrox"
TASK = config.Study().task("first", "phantom", "none", 0)
PRIVATE = {
    "guarantee": "differential privacy", "epsilon": 5.0, "epsilon_patient": 40.0, "delta": 1e-5,
    "unit": "patch", "neighbouring_relation": "add or remove one patch", "sampling": "Poisson",
    "loop": "valid", "noise_multiplier": 0.8, "records_per_patient": 250, "accountant": "PLD",
    "noise": randomness.description("secure"), "selection": ledger.SELECTION,
    "text": "epsilon 5 per patch",
}  # fmt: skip
SEEDED = {**PRIVATE, "noise": randomness.description("seeded")}


def example(rng, statement=PRIVATE, count=6, **about):
    pairs = rng.integers(0, 256, (count, 2, 24, 24)).astype(np.uint8)
    pairs[:, 1] = pairs[:, 1] > 200
    row = {"test_cohort": "first", "metric": "dsc", "mean": 0.7123, "sd": 0.05, "patients": 3}
    audit = {"method": "one run", "unit": "patch", "claim": 5.0, "lower_bound": 1.0, "ceiling": 2.0,
             "verdict": "not refuted"}  # fmt: skip
    return bundle.Bundle(
        name="phantom-none-seed-0",
        about=config.Release(**about),
        task=TASK,
        pairs=pairs,
        weights={"a": torch.zeros(3)},
        statement=statement,
        audits=pd.DataFrame([audit]),
        scores=pd.DataFrame([row]),
        others={},
    )


# ------------------------------------------------------------------ a bundle opens everywhere


def test_a_bundle_opens_in_what_people_use(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = example(rng, creator="A hospital", url="https://example.org/release")
    folder = tmp_path / "out"
    bundle.write(folder, made, {SECRET})
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "data"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert len(found) == 6
    np.testing.assert_array_equal(np.array(found[2]["image"]).T, made.pairs[2, 0])
    np.testing.assert_array_equal(np.array(found[2]["label"]).T, 255 * made.pairs[2, 1])
    described = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    assert len(list(described.records("pairs"))) == 6
    for channel, name in enumerate(("images", "labels")):
        path = folder / "nifti" / f"{name}.nii.gz"
        slices = np.asarray(nib.load(path).dataobj)
        np.testing.assert_array_equal(slices.transpose(2, 0, 1), made.pairs[:, channel])
        opened = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(opened.transpose(0, 2, 1), made.pairs[:, channel])
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    assert all(artifacts.file_hash(folder / name) == value for name, value in sums.items())
    assert artifacts.read_sealed(folder / "privacy.json") == PRIVATE


def test_the_card_says_what_it_costs(rng):
    text = bundle.card(example(rng, creator="A hospital"))
    for said in ("epsilon 5 per patch", "| ε per patient | 40 |", "one run", "0.71 ± 0.05", "CC-BY-4.0",
                 "add or remove one patch", "A hospital"):  # fmt: skip
        assert said in text
    assert "0.7123" not in text
    entry = json.loads(json.dumps(bundle.model_entry(example(rng))))["phantom-none-seed-0"]
    assert entry["selection"]["privacy_preservation"]["epsilon_patient"] == 40.0


def test_releases_on_the_same_patients_add_up(rng):
    made = example(rng)
    both = bundle.Bundle(**{**vars(made), "others": {"wgan/eps-2/seed-0": PRIVATE}})
    assert both.together == (80.0, 2e-5)
    assert "at most\nε = 80 per patient" in bundle.card(both)


def test_no_finite_epsilon_is_infinite_and_not_nothing(rng):
    made = example(rng, {**PRIVATE, "epsilon_patient": None})
    assert made.together[0] == float("inf")
    assert "| ε per patient | inf |" in bundle.card(made)


def test_a_public_release_says_so(rng):
    text = bundle.card(example(rng, ledger.public()))
    assert "**ε = 0.**" in text


@pytest.mark.parametrize(
    ("statement", "public", "said"),
    [
        (ledger.without_privacy(), True, "guarantee is 'none'"),
        ({**PRIVATE, "loop": "as-published"}, True, "as-published"),
        (SEEDED, False, "the noise is .*seed"),
        (SEEDED, True, None),
        (PRIVATE, False, None),
        (ledger.public(), False, None),
    ],
)
def test_what_may_not_leave_is_refused(statement, public, said):
    if said is None:
        bundle.check(statement, public, "point")
    else:
        with pytest.raises(bundle.ReleaseError, match=said):
            bundle.check(statement, public, "point")


# ------------------------------------------------------------------ planted in a bundle


def png_with(**chunks):
    def plant(folder: Path) -> None:
        path = folder / "data/train/images/000001.png"
        info = PngImagePlugin.PngInfo()
        for kind, text in chunks.items():
            if kind == "zip":
                info.add_text("a", text, zip=True)
            elif kind == "itxt":
                info.add_itxt("a", text)
            else:
                info.add_text(text, "a")
        Image.open(path).save(path, pnginfo=info)

    return plant


def png_chunk(kind: bytes):
    def plant(folder: Path) -> None:
        path = folder / "data/train/labels/000000.png"
        raw, body = path.read_bytes(), SECRET.encode()
        chunk = (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
        path.write_bytes(raw[:-12] + chunk + raw[-12:])

    return plant


def append(name: str, content: bytes = SECRET.encode()):
    def plant(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(content)

    return plant


def nifti_field(field: str, value: object = SECRET.encode()[:15]):
    def plant(folder: Path) -> None:
        path = folder / "nifti/images.nii.gz"
        content = gzip.decompress(path.read_bytes())
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(content))
        header[field] = value
        path.write_bytes(gzip.compress(header.binaryblock + content[348:], mtime=0))

    return plant


def nifti_extension(folder: Path) -> None:
    path = folder / "nifti/labels.nii.gz"
    image = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def gzip_header(**how):
    def plant(folder: Path) -> None:
        path = folder / "nifti/images.nii.gz"
        content = gzip.decompress(path.read_bytes())
        packed = io.BytesIO()
        with gzip.GzipFile(
            fileobj=packed, mode="wb", **{"mtime": 0, "filename": "", **how}
        ) as file:
            file.write(content)
        path.write_bytes(packed.getvalue())

    return plant


def second_member(folder: Path) -> None:
    append("nifti/images.nii.gz", gzip.compress(SECRET.encode(), mtime=0))(folder)


def in_json(name: str, spelt: Callable[[str], str] = lambda text: text):
    def plant(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text().replace("{", '{"by": "' + spelt(SECRET) + '", ', 1))

    return plant


def in_pixels(folder: Path) -> None:
    path = folder / "data/train/images/000002.png"
    pixels = np.array(Image.open(path))
    pixels[3, : len(SECRET)] = np.frombuffer(SECRET.encode(), np.uint8)
    Image.fromarray(pixels).save(path)


def in_voxels(folder: Path) -> None:
    path = folder / "nifti/images.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[400 : 400 + len(SECRET)] = SECRET.encode()
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


def in_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, folder / "model/weights.safetensors", {"by": SECRET})


def file_named(name: str):
    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")

    return plant


def zipped(folder: Path) -> None:
    np.savez(folder / "pairs.npz", **{SECRET: np.zeros(2)})


def link(folder: Path) -> None:
    (folder / "nifti/raw.nii.gz").symlink_to(f"/tmp/{SECRET}")


def utf16(folder: Path) -> None:
    (folder / "data/train/metadata.jsonl").write_bytes(f'{{"a": "{SECRET}"}}'.encode("utf-16-le"))


PLANTS = {
    "png tEXt": png_with(text="x", key=SECRET), "png zTXt": png_with(zip=SECRET),
    "png iTXt": png_with(itxt=SECRET), "png eXIf": png_chunk(b"eXIf"),
    "png tIME": png_chunk(b"tIME"), "png iCCP": png_chunk(b"iCCP"),
    "png private chunk": png_chunk(b"prVt"),
    "png after its end": append("data/train/images/000000.png"), "png pixels": in_pixels,
    "nifti descrip": nifti_field("descrip"), "nifti aux_file": nifti_field("aux_file"),
    "nifti db_name": nifti_field("db_name"), "nifti intent_name": nifti_field("intent_name"),
    "nifti data_type": nifti_field("data_type", b"Zaphod"),
    "nifti cal_max": nifti_field("cal_max", 19521011.0),
    "nifti slice_duration": nifti_field("slice_duration", 42.0),
    "nifti offset in space": nifti_field("srow_x", [1, 0, 0, -71.3]),
    "nifti extension": nifti_extension, "nifti voxels": in_voxels,
    "gzip name": gzip_header(filename=SECRET), "gzip time": gzip_header(mtime=1234567890),
    "gzip second member": second_member, "gzip after its end": append("nifti/labels.nii.gz"),
    "card": append("README.md"), "checksums": append("SHA256SUMS"),
    "ledger": in_json("privacy.json"), "croissant": in_json("croissant.json"),
    "croissant, escaped": in_json(
        "croissant.json", lambda text: "".join(f"\\u{ord(c):04x}" for c in text)
    ),
    "croissant, capitals": in_json("croissant.json", str.upper),
    "model entry": in_json("model/entry.json"), "table of pairs, UTF-16": utf16,
    "weights' metadata": in_weights, "weights, after their end": append("model/weights.safetensors"),
    "file's name": file_named(f"data/train/images/{SECRET}.png"),
    "folder's name": file_named(f"{SECRET}/000000.png"), "stray file": file_named(".DS_Store"),
    "npz": zipped, "link": link,
    "absolute path": append("README.md", b" /home/arthur/raw.nii "),
    "windows path": append("README.md", rb" D:\scans\raw.nii "),
    "DICOM UID": append("README.md", b" 1.2.840.113619.2.55.3.604688.12 "),
    "mail address": append("README.md", b" arthur@dent.example "),
    "day": append("README.md", b" born 1952-03-11 "),
}  # fmt: skip


@pytest.fixture
def planting(rng, tmp_path, monkeypatch):
    """Write a bundle into which something was planted; gives its folder."""
    build = bundle.build

    def write(plant):
        def planted(folder, made):
            build(folder, made)
            plant(folder)

        monkeypatch.setattr(bundle, "build", planted)
        bundle.write(tmp_path / "out", example(rng), {SECRET})
        return tmp_path / "out"

    return write


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_is_planted_in_a_bundle_keeps_it_from_leaving(planting, tmp_path, plant):
    with pytest.raises(scan.LeakError, match="nothing is released"):
        planting(plant)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_without_the_scanner_it_would_have_left(planting, monkeypatch, plant):
    monkeypatch.setattr(scan, "refuse_leaks", lambda folder, tokens: None)
    folder = planting(plant)
    assert list(scan.find(folder, {SECRET}))


def test_findings_name_file_and_fault(planting):
    with pytest.raises(scan.LeakError) as error:
        planting(PLANTS["nifti descrip"])
    assert "nifti/images.nii.gz: NIfTI header" in str(error.value)
    with pytest.raises(scan.LeakError) as error:
        planting(PLANTS["card"])
    assert "README.md: holds 'zaphod-beeblebrox'" in str(error.value)


def test_short_and_hexadecimal_ids_are_words_not_parts_of_checksums(rng, tmp_path):
    bundle.write(tmp_path / "out", example(rng), {"abcd", "0f3a", "123456", "beef"})
    (tmp_path / "out/README.md").write_text("patient 123456 of 7")
    assert any("'123456'" in finding for finding in scan.find(tmp_path / "out", {"123456"}))


# ------------------------------------------------------------------ planted in the cohort


@pytest.fixture
def cohort(rng, tmp_path):
    """A cohort of one patient with a secret in every place that has room for one."""
    root = tmp_path / f"{SECRET}-root"
    anat = root / "sub-zaphod42/anat"
    labels = root / "derivatives/labels/sub-zaphod42/anat"
    for folder, name, kind in (
        (anat, "angio", nib.Nifti1Image),
        (labels, "label-vessel_mask", nib.Nifti2Image),
    ):
        folder.mkdir(parents=True)
        image = kind(rng.integers(0, 2, (24, 24, 6)).astype(np.int16), np.eye(4))
        image.header["descrip"] = f"Scanner-of-{name[:5]}-Magrathea".encode()
        image.header["aux_file"], image.header["intent_name"] = b"aux-Vogon", b"intent-Marvin"
        if kind is nib.Nifti1Image:
            image.header["db_name"] = b"db-Trillian"
        image.header.extensions.append(
            nib.nifti1.Nifti1Extension("comment", b"PatientName Ford^Prefect ")
        )
        with (
            (folder / f"sub-zaphod42_{name}.nii.gz").open("wb") as raw,
            gzip.GzipFile(f"raw-Slartibartfast-{name}", "wb", fileobj=raw) as file,
        ):
            file.write(image.to_bytes())
    (root / "participants.tsv").write_text(
        "participant_id\tsplit\tsite\tname\nsub-zaphod42\ttrain\tKrikkit\tHotblack Desiato\n"
        'sub-trin\ttrain\t"lone\tAgrajag\nsub-gag\ttrain\tlone"\tGargravarr\n'
    )
    patient = bids.Patient(
        participant_id="sub-zaphod42", split="train", site="Krikkit", region=None,
        image=anat / "sub-zaphod42_angio.nii.gz",
        label=labels / "sub-zaphod42_label-vessel_mask.nii.gz",
    )  # fmt: skip
    bids.write_manifest(tmp_path / "manifest.tsv", root, [patient])
    return root, tmp_path / "manifest.tsv"


SOUGHT = (
    "sub-zaphod42", "zaphod42", "Krikkit", "Hotblack Desiato", "Agrajag", "Gargravarr",
    "Scanner-of-angio-Magrathea", "Scanner-of-label-Magrathea", "aux-Vogon",
    "db-Trillian", "intent-Marvin", "Ford^Prefect", "raw-Slartibartfast-angio",
    "sub-zaphod42_angio.nii.gz", "sub-zaphod42_angio",
)  # fmt: skip


def test_everything_that_identifies_a_patient_is_sought(cohort):
    root, manifest = cohort
    tokens = identifiers.of_cohort(root, manifest, public=False)
    assert set(SOUGHT) <= tokens
    assert str(root) in tokens
    assert "train" not in tokens
    assert "Krikkit" not in identifiers.of_cohort(root, manifest, public=True)


@pytest.mark.parametrize("token", SOUGHT)
def test_each_of_them_keeps_a_bundle_from_leaving(cohort, rng, tmp_path, token):
    tokens = identifiers.of_cohort(*cohort, public=False)
    with pytest.raises(scan.LeakError, match="identifies a patient"):
        bundle.write(tmp_path / "out", example(rng, description=f"Of {token}, say."), tokens)
    bundle.write(tmp_path / "out", example(rng, description="Of nobody."), tokens)
    held = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert token.lower().encode() not in held.lower()


def test_a_bundle_is_replaced_only_by_a_whole_one(planting, rng, tmp_path):
    folder = planting(lambda folder: None)
    before = (folder / "SHA256SUMS").read_text()
    with pytest.raises(scan.LeakError):
        planting(PLANTS["card"])
    assert (folder / "SHA256SUMS").read_text() == before
    shutil.rmtree(folder)
