"""What a bundle must not hold, planted in every place and spelling: none of it gets out."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import struct
import time
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, PngImagePlugin
from test_release import SECRET, example

from veil import config
from veil.cohorts import bids
from veil.privacy import ledger
from veil.privacy.accounting import Charge
from veil.privacy.register import Total
from veil.release import bundle, identifiers, scan
from veil.release.sought import tokens_of

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
    assert "README.md: holds 'zaphod' (as in 'Zaphod-Beeblebrox')" in str(error.value)


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


# ------------------------------------------------------------------ spelt by others


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def entities(text: str) -> str:
    return "".join(f"&#{ord(letter)};" for letter in text)


def percent(text: str, codec: str = "utf-8") -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode(codec))


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


SPELT = {
    "Müller^Jürgen": (
        "MÜLLER^JÜRGEN", "müller", "Mueller", "MUELLER, JUERGEN", "Muller", nfd("Müller"),
        nfd("JÜRGEN"), "Jürgen Müller", "Jürgen A. Müller", "J. Müller", "Müller, Jürgen",
        "juergen_mueller", "JürgenMüller", "xMuellerj2", "Müller's", "M&uuml;ller", "M&#xFC;ller",
        escaped("Müller"), "M\\xfcller", "M\\303\\274ller", "M%C3%BCller", "M%FCller",
        "M=C3=BCller", "MÃ¼ller", "M\u00adül\u200bler", "M ü l l e r", "Mül-\nler", "Mül<b>l</b>er",
        "Ｍüｌｌｅｒ", base64_of("Müller"), "Müller".encode().hex(), percent(percent("Jürgen")),
    ),
    "Hotblack Desiato": ("Desiato", "DESIATO, H.", "hotblack.desiato", "HotblackDesiato"),
    "Groß^Åsa": ("GROSS", "groß", "Aasa Gross", "Åsa Groß", nfd("Åsa, Groß")),
    "O'Brien^Siobhán": ("O’BRIEN", "OBrien", "Siobhan", "Siobhán O Brien"),
    "Łukasiewicz^Żaneta": ("LUKASIEWICZ", "zaneta", "Żaneta Łukasiewicz"),
    "Nguyễn^Ánh": ("nguyen", nfd("NGUYỄN"), "Anh Nguyen"),
    "Kim^Li": ("Li Kim", "Kim, Li", "KIM_LI", "Li A. Kim"),
    "Παπαδόπουλος^Γιώργος": (
        "ΠΑΠΑΔΟΠΟΥΛΟΣ", "παπαδοπουλοσ", "Γιώργος Παπαδόπουλος", "ΓΙΏΡΓΟΣ", "Γ. Παπαδόπουλος",
        nfd("Παπαδόπουλος"), entities("Παπαδόπουλος"), percent("Γιώργος"), escaped("ΓΙΩΡΓΟΣ"),
        "Παπαδόπουλος".encode().decode("latin-1"),
    ),
    "Ευα^Ρω": ("ΕΎΑ", "ρω εύα"),
    "Иванов^Сергей": (
        "ИВАНОВ", "сергей", "Сергеи", nfd("Сергей"), "Сергей Иванов", "Иванов, С.",
        entities("Иванов"), percent("Сергей"), escaped("ИВАНОВ"), base64_of("Иванов"), "Ивановым",
    ),
    "Ёлкин^Лев": ("ЕЛКИН", "лев", "Лев Ёлкин"),
    "王小明": (
        "患者王小明入院", "王 小明", "王^小明", "小明, 王", escaped("王小明"), entities("王小明"),
        percent("王小明"), base64_of("王小明"),
    ),
    "李娜": ("李娜", "患者李娜。", percent("李娜"), "李　娜"),
    "Wang^XiaoDong=王^小东": ("王小东", "小东", "XiaoDong Wang", "WANG", "小东王"),
    "김철수": ("김철수는", nfd("김철수")),
    "sub-0042": (
        "sub_0042", "SUB 0042", "sub0042", "0042", "sub-42", "subject 42", "Sub–0042", "Sub.0042",
        escaped("sub-0042"),
    ),
    "10042317": (
        "MRN:10042317.", "10042317.dcm", "10 042 317", "1004-2317", "10.042.317", "１００４２３１７",
        "MRN_10042317_1", base64_of("10042317"),
    ),
    "1952-03-11": (
        "11.03.1952", "11/03/1952", "03/11/1952", "3/11/1952", "11-Mar-1952", "March 11, 1952",
        "11 März 1952", "11. März 1952", "1952.03.11", "19520311", "11 March 1952", "11.03.52",
        "11 mars 1952", "11 марта 1952", "1952年3月11日", "19520311101500", "11th of March, 1952",
        percent("11.03.1952"),
    ),
    "+49 30 1234567": (
        "(030) 123-4567", "+49301234567", "0049 30 1234567", "030/1234567", "+49-30-123 45 67",
        "030.123.4567",
    ),
}  # fmt: skip
SPELLINGS = [(token, text) for token, texts in SPELT.items() for text in texts]
BYTES = [
    *((token, token, codec)
      for token in ("Müller", "Παπαδόπουλος", "Иванов", "王小明")
      for codec in ("utf-16-le", "utf-16-be", "utf-16", "utf-32-le")),
    ("Müller^Jürgen", "Müller", "latin-1"), ("Müller^Jürgen", "JÜRGEN", "cp1252"),
    ("Παπαδόπουλος", "Παπαδόπουλος", "iso8859-7"), ("Иванов", "Иванов", "koi8-r"),
    ("王小明", "王小明", "gb18030"),
]  # fmt: skip
SUSPICIOUS = (
    "/gpfs/project/scan1", "/nfs/raw/scan1", "/Volumes/Disk/scan1", "/cluster/x/y",
    "/lustre/raw/x", "/work/main/x", "x:/beegfs/raw/x", "file:///d/scan1", r"\\server\share",
    "\\\\\\\\server\\\\share", "~arthur/scan1", "~/scan1", "smb://server/x", "D:/scans/x",
    percent("/gpfs/project/scan1"), "11.03.1952", "11/03/1952", "3/11/1952", "11-Mar-1952",
    "March 11, 1952", "11 März 1952", "1952.03.11", "1952-3-1", "11 de marzo de 1952",
    "11 Μαρτίου 1952", "+49 30 1234567", "(030) 123-4567", "Arthur@Dent.EXAMPLE",
    "1.2.840.113619.2", "a sign \x07",
)  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A bundle of one pair, built once: what is planted is appended to copies of it."""
    folder = tmp_path_factory.mktemp("clean") / "out"
    bundle.build(folder, example(np.random.default_rng(7), count=1))
    return folder


@pytest.fixture
def leaves(clean, rng, tmp_path, monkeypatch):
    """Whether a bundle leaves with and without the scanner, once something is appended to a file."""
    folder = tmp_path / "out"

    def planted(content: bytes, name: str):
        def built(folder, made):
            shutil.copytree(clean, folder)
            append(name, content)(folder)

        return built

    def check(content: bytes, *tokens: str, name="README.md"):
        monkeypatch.setattr(bundle, "build", planted(content, name))
        with monkeypatch.context() as without:
            without.setattr(scan, "refuse_leaks", lambda folder, tokens: None)
            bundle.write(folder, example(rng, count=1), tokens)
        assert content in (folder / name).read_bytes()
        shutil.rmtree(folder)
        with pytest.raises(scan.LeakError, match="nothing is released") as error:
            bundle.write(folder, example(rng, count=1), tokens)
        assert not list(tmp_path.iterdir())
        return str(error.value)

    return check


@pytest.mark.parametrize(("token", "text"), SPELLINGS)
def test_no_spelling_of_a_token_leaves(leaves, token, text):
    said = leaves(f" Of {text} here.\n".encode(), *tokens_of({token}))
    assert "identifies a patient" in said
    if token != text:  # who reads the finding has to know whose it is
        assert repr(token) in said


@pytest.mark.parametrize(("token", "text", "codec"), BYTES)
def test_no_encoding_of_a_token_leaves(leaves, token, text, codec):
    assert "README.md" in leaves(b"\n" + text.encode(codec), *tokens_of({token}))


@pytest.mark.parametrize("text", SUSPICIOUS)
def test_what_looks_like_an_identifier_does_not_leave(leaves, text):
    assert "README.md: holds " in leaves(f" see {text} there\n".encode())


PATTERNS = (
    ("Müller^Jürgen", "Müller", "utf-8"), ("Müller^Jürgen", "MÜLLER", "latin-1"),
    ("Müller^Jürgen", nfd("Jürgen"), "utf-8"), ("Παπαδόπουλος", "ΠΑΠΑΔΌΠΟΥΛΟΣ", "utf-8"),
    ("Иванов^Сергей", "иванов", "utf-8"), ("Иванов^Сергей", "Иванов", "utf-16-le"),
    ("王小明", "王小明", "utf-8"), ("李娜", "李娜", "utf-8"), ("王小明", "王小明", "utf-16-le"),
    ("10042317", "10042317", "utf-8"),
)  # fmt: skip
PLACES = ("rows", "columns", "slices", "weights")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("token", "text", "codec"), PATTERNS)
def test_no_pixels_and_no_weights_spell_a_token(rng, tmp_path, token, text, codec, place):
    raw = np.frombuffer(text.encode(codec), np.uint8)
    raw = np.resize(raw, 24)[: max(len(raw), 24) if place == "weights" else len(raw)]
    made = example(rng, count=24)
    if place == "weights":
        made = replace(made, weights={"a": torch.from_numpy(raw.copy())})
    elif place == "rows":
        made.pairs[2, 0, : len(raw), 5] = raw
    elif place == "columns":
        made.pairs[2, 0, 5, : len(raw)] = raw
    else:
        made.pairs[: len(raw), 0, 5, 5] = raw
    scanner, tokens = scan.refuse_leaks, tokens_of({token})
    with pytest.raises(scan.LeakError, match="identifies a patient"):
        bundle.write(tmp_path / "out", made, tokens)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(scan, "refuse_leaks", lambda folder, tokens: None)
        bundle.write(tmp_path / "out", made, tokens)
    with pytest.raises(scan.LeakError):
        scanner(tmp_path / "out", tokens)


# ------------------------------------------------------------------ random names


LETTERS = {
    "Latin": "abcdefghijklmnopqrstuvwxyzàáâäãåæçèéêëìíîïñòóôöõøùúûüýÿžščřłńśßğőű",
    "Greek": "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώ",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяё",
    "Chinese": "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗小明东娜伟芳秀英敏静丽强磊军洋勇艳杰",
}
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
CASES = (str, str.upper, str.lower, str.title)
ESCAPES = (
    str, str, str, escaped, entities, percent, base64_of, lambda text: text.encode().hex(),
)  # fmt: skip


def random_name(rng, script: str) -> list[str]:
    """Family name and given name."""
    sizes = (1, int(rng.integers(1, 3))) if script == "Chinese" else rng.integers(4, 10, 2)
    return ["".join(rng.choice(list(LETTERS[script]), size)) for size in sizes]


def respelt(rng, name: list[str], script: str) -> bytes:
    """The name as somebody else may write it."""
    words = name if rng.random() < 0.5 else name[::-1]
    if script != "Chinese" and rng.random() < 0.3:
        words = [words[int(rng.integers(len(words)))]]
    separators = (
        ["", " ", "^", "_"] if script == "Chinese" else [" ", ", ", "^", "_", "-", ".", " A. "]
    )
    text = str(rng.choice(separators)).join(words)
    text = CASES[rng.integers(len(CASES))](text)
    text = unicodedata.normalize(FORMS[rng.integers(len(FORMS))], text)
    text = ESCAPES[rng.integers(len(ESCAPES))](text)
    codec = str(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le"]))
    return f" of {text} . ".encode(codec)


@pytest.mark.parametrize("script", LETTERS)
def test_random_names_are_found_however_they_are_spelt(rng, tmp_path, script):
    card = tmp_path / "README.md"
    for _ in range(100):
        name = random_name(rng, script)
        token = ("" if script == "Chinese" else "^").join(name)
        card.write_bytes(b"A card.\n" + respelt(rng, name, script))
        findings = list(scan.find(tmp_path, tokens_of({token})))
        assert any("identifies" in finding for finding in findings), (token, card.read_bytes())


# ------------------------------------------------------------------ clean bundles leave


def realistic(rng) -> pd.DataFrame:
    """Participants as a hospital lists them."""
    count = 40
    families = [
        "Müller",
        "Schmidt",
        "Šimić",
        "Nowak",
        "Øst",
        "Papadakis",
        "Иванова",
        "Κωνσταντίνου",
        "García",
        "Mark",
    ]
    return pd.DataFrame(
        {
            "participant_id": [f"sub-{number:04d}" for number in range(count)],
            "split": rng.choice(["train", "validation", "test"], count),
            "age": rng.integers(18, 95, count).astype(str),
            "sex": rng.choice(["male", "female", "M", "F", "other"], count),
            "handedness": rng.choice(["left", "right", "ambidextrous", "n/a", "unknown"], count),
            "site": rng.choice(["Charité Berlin", "Klinikum Großhadern", "北京协和医院"], count),
            "scanner": rng.choice(["Siemens Magnetom Skyra 3T", "Philips Achieva 1.5 T"], count),
            "date_of_birth": [
                f"19{rng.integers(30, 99)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
                for _ in range(count)
            ],
            "name": [
                f"{rng.choice(families)}^{rng.choice(['Anna', 'Jürgen', 'Li', '小明', 'Will'])}"
                for _ in range(count)
            ],
            "mrn": rng.integers(10**6, 10**8, count).astype(str),
            "weight": rng.normal(75, 12, count).round(1).astype(str),
            "dsc": rng.random(count).round(2).astype(str),
            "diagnosis": rng.choice(["healthy control", "stroke, left", "none", "n/a"], count),
            "group": rng.choice(["1", "2", "10", "250", "1000"], count),
        }
    )


def stated() -> dict:
    """A statement as a ledger makes it."""
    events = [
        ledger.Event(
            access="training", clip_norm=1.0, planned_draws=2000,
            charge=Charge(sampling_rate=0.0123, noise_multiplier=1.2345, draws=2000),
        )
    ]  # fmt: skip
    return ledger.Ledger(
        unit="patch", delta=1e-5, records_per_patient=250, units=10000, events=tuple(events),
        patients=40, noise_source="secure",
    ).statement("valid")  # fmt: skip


CLEAN = (
    {},
    {"title": "Vessels without patients", "creator": "A hospital", "organ": "brain",
     "modality": "MRA", "url": "https://example.org/data/release-1.0/vessels",
     "description": "Time-of-flight angiograms of the circle of Willis at 3 tesla, with vessel "
     "labels; made with torch 2.13.0, tifffile v2026.3.3 and/or others, see "
     "https://doi.org/10.1000/182."},
)  # fmt: skip


@pytest.mark.parametrize("kind", ["phantom", "wgan", "diffusion"])
@pytest.mark.parametrize("about", CLEAN)
def test_a_clean_bundle_leaves_whatever_the_cohort_says(rng, tmp_path, kind, about):
    tokens = tokens_of(realistic(rng).drop(columns="split").to_numpy().ravel())
    made = replace(
        example(rng, stated(), count=60, **about),
        task=config.Study().task("first", kind, "none", 0),
        others=(f"{kind}/eps-10/seed-1",),
        together=Total(accesses=2, epsilon=9.0, delta=1e-5, best_case=False),
    )
    bundle.write(tmp_path / "out", made, tokens | identifiers.of_machine())
    found = tokens_of({"Müller^Anna", "Κωνσταντίνου^Jürgen"})
    assert found <= tokens | found
    append("README.md", b" KONSTANTINOU, Muller ")(tmp_path / "out")
    assert any("muller" in finding for finding in scan.find(tmp_path / "out", tokens))


@pytest.mark.parametrize("words", ["male", "left", "train", "none", "vessel", "image", "63", "0.71",
                                   "1000", "0.05", "24", "n/a", "healthy control"])  # fmt: skip
def test_common_words_and_small_numbers_are_not_sought(rng, tmp_path, words):
    made = example(rng, description=f"It says {words} and no more.")
    bundle.write(tmp_path / "out", made, tokens_of({words}))


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("0042", "000042.png"), ("7123", "0.7123"), ("Martin", "a smart inset"), ("Beth", "be the"),
        ("10042317", "0.10042317"), ("abcd", "9f00abcd12e7"), ("+49 30 1234567", "0.1234567"),
        ("120/80", "[120, 80]"),
        ("sub-patient40", "| per patient | 40 |"), ("19520311", "0.19520311"), ("李娜", "李 is a name, 娜 another"),
    ],
)  # fmt: skip
def test_what_only_looks_like_a_token_leaves(rng, tmp_path, token, text):
    bundle.write(tmp_path / "out", example(rng, description=text), tokens_of({token}))


def test_ids_of_six_digits_are_not_the_numbers_of_the_pairs(rng, tmp_path):
    tokens = tokens_of({f"sub-{number:06d}" for number in range(60)})
    bundle.write(tmp_path / "out", example(rng), tokens)
    (tmp_path / "out/data/train/images/000000.png").rename(
        tmp_path / "out/data/train/images/000042.png"
    )
    assert any("its name" in finding for finding in scan.find(tmp_path / "out", tokens))


def test_tissue_as_bright_as_letters_spells_no_names(rng, tmp_path):
    made = example(rng, count=100)
    pairs = made.pairs.copy()
    pairs[:, 0] = rng.normal(110, 8, pairs[:, 0].shape).clip(0, 255)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    names = {"".join(rng.choice(letters, 6)) for _ in range(5000)}
    bundle.write(tmp_path / "out", replace(made, pairs=pairs), tokens_of(names))


def test_a_bundle_is_searched_in_seconds(rng, tmp_path):
    pairs = rng.integers(0, 256, (250, 2, 64, 64)).astype(np.uint8)
    pairs[:, 1] //= 128
    bundle.build(tmp_path, replace(example(rng), pairs=pairs))
    tokens = tokens_of(realistic(rng).to_numpy().ravel())
    start = time.process_time()
    assert not list(scan.find(tmp_path, tokens))
    assert time.process_time() - start < 10, "500 PNGs; it takes about 1 s"


# ------------------------------------------------------------------ beside the images


SIDECAR = {
    "PatientName": "Dent^Arthur", "PatientID": "PAT-55512", "AccessionNumber": 90210777,
    "AcquisitionDateTime": "2019-07-04T10:11:12.5", "InstitutionName": "Milliways",
    "DeviceSerialNumber": "66017", "StationName": "MEGADODO1", "EchoTime": 0.0034,
    "ImageType": ["ORIGINAL", "PRIMARY"], "Nested": {"OperatorsName": ["Zarniwoop"]},
}  # fmt: skip
BESIDE = ("Arthur Dent", "PAT_55512", "90210777", "4 July 2019", "milliways", "66017", "MEGADODO-1",
          "zarniwoop", "Wonko", "Eccentrica", "12.05.2018", "Gallumbits", "Lunkwill")  # fmt: skip


@pytest.fixture
def told(cohort):
    """The cohort of one patient with sidecars, and with tables of sessions, scans and phenotypes."""
    root, manifest = cohort
    patient = root / "sub-zaphod42"
    (patient / "anat/sub-zaphod42_angio.json").write_text(json.dumps(SIDECAR))
    (patient / "anat/sub-zaphod42_label.json").write_bytes(
        '{"By": "Fook Lünkwill"}'.encode("latin-1")
    )
    (patient / "sub-zaphod42_sessions.tsv").write_text("session_id\tby\nses-1\tWonko\n")
    (patient / "sub-zaphod42_scans.tsv").write_text(
        "filename\tacq_time\tby\nanat/x.nii.gz\t2018-05-12T08:00:00\tEccentrica\n"
    )
    (root / "phenotype").mkdir()
    (root / "phenotype/test.tsv").write_text("participant_id\tby\nsub-zaphod42\tGallumbits\n")
    return root, manifest


@pytest.mark.parametrize("text", BESIDE)
def test_what_stands_beside_the_images_does_not_leave(told, rng, tmp_path, text):
    made = example(rng, count=1, description=f"Of {text}, say.")
    bundle.write(
        tmp_path / "out", example(rng, count=1), identifiers.of_cohort(*told, public=False)
    )
    with pytest.raises(scan.LeakError):
        bundle.write(tmp_path / "refused", made, identifiers.of_cohort(*told, public=False))
    with pytest.MonkeyPatch.context() as without:
        without.setattr(scan, "refuse_leaks", lambda folder, tokens: None)
        bundle.write(tmp_path / "let-out", made, identifiers.of_cohort(*told, public=False))


def test_a_sidecar_that_is_no_json_is_named(told):
    path = told[0] / "sub-zaphod42/anat/sub-zaphod42_angio.json"
    path.write_text("{")
    with pytest.raises(bids.CohortError, match=r"angio\.json: .*allowed: JSON"):
        identifiers.of_cohort(*told, public=False)


LISTED = ("Fenchurch", "Prak_Eddie", "scan of Roosta", "GAG-HALFRUNT", "Halfrunt", "Lintilla",
          "AZGOTH-77", "the scan vroomfondel")  # fmt: skip


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "listed.tsv"
    path.write_text(
        "participant_id\timage\tlabel\tsplit\treferrer\tnote\n"
        "sub-1\t/raw/store/Fenchurch/one.mha\tlabels/Roosta.mha\ttrain\tGag^Halfrunt\tcalled Lintilla\n"
        "sub-2\t/raw/store/Eddie_Prak/one.mha\t../Vroomfondel.mha\ttest\tn/a\tAzgoth 77\n"
    )
    return path


@pytest.mark.parametrize("text", LISTED)
def test_no_cell_of_an_import_table_leaves(cohort, table, rng, tmp_path, text):
    tokens = identifiers.of_cohort(*cohort, public=False, table=table)
    assert identifiers.of_table(table) <= tokens
    bundle.write(tmp_path / "out", example(rng, description="Of raw store labels."), tokens)
    made = example(rng, description=f"Of {text}, say.")
    with pytest.raises(scan.LeakError, match="identifies a patient"):
        bundle.write(tmp_path / "refused", made, tokens)
    bundle.write(tmp_path / "let-out", made, identifiers.of_cohort(*cohort, public=False))


def test_the_places_of_an_import_are_sought_whole(table, rng, tmp_path):
    tokens = identifiers.of_table(table)
    assert {str(table), "/raw/store/Fenchurch/one.mha", "Fenchurch", "Roosta"} <= tokens
    assert not {"store", "train", "test"} & tokens
    with pytest.raises(scan.LeakError, match="identifies a patient"):
        bundle.write(
            tmp_path / "out", example(rng, description="raw_store_fenchurch_one.mha"), tokens
        )
