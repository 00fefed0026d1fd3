"""`snakemake --use-conda` where no conda channel can be reached: a stand-in for conda, and a study run with it.

    python tests/workflow/conda.py                     # one result of the tiny study
    python tests/workflow/conda.py all release         # all of it

The stand-in reads workflow/envs/veil.yaml, solves and links with py-rattler, and lets the new
environment's own pip install the `pip:` section. Its channel holds two packages, python and pip,
made from the Python that runs this. So all of the environment file is tried but this: whether
conda-forge has what it names.

Snakemake runs from an environment that holds Snakemake alone. It appends its own packages to a
job's search path, where they would stand in for whatever the environment file forgot.

Needs Linux, a package index, 4 GB in the temporary folder, and from 5 minutes to half an hour.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = "results/first/wgan/sigma-2/seed-0/scores/segmentation.tsv"
CHANGED = "Software environment definition has changed"
RATTLER = "py-rattler==0.28.0"

PROBE = """

rule probe:
    output:
        "probe.json",
    params:
        names={names},
    conda:
        "workflow/envs/veil.yaml"
    script:
        "workflow/scripts/probe.py"
"""
PROBE_SCRIPT = """
import importlib, json, pathlib
found = {n: getattr(importlib.import_module(n), "__file__", None) for n in snakemake.params.names}
pathlib.Path(snakemake.output[0]).write_text(json.dumps(found))
"""
IMPORTS = """
import importlib, json, sys
sys.path.append(sys.argv[1])
found = {n: getattr(importlib.import_module(n), "__file__", None) for n in sys.argv[2:]}
print(json.dumps(found))
"""


# ------------------------------------------------------------------ the stand-in


def answer(base: Path, arguments: list[str]) -> None:
    """What `conda` answers to the calls that Snakemake makes, and to `conda list --explicit`."""
    if arguments == ["--version"]:
        print("conda 25.1.0")
    elif arguments == ["info", "--json"]:
        print(json.dumps({"conda_prefix": str(base), "platform": "linux-64"}))
    elif arguments == ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif arguments[:2] == ["clean", "-y"]:
        pass
    elif arguments[:3] == ["list", "--explicit", "--prefix"]:
        records = [json.loads(p.read_text()) for p in Path(arguments[3]).glob("conda-meta/*.json")]
        print("@EXPLICIT", *(f"{record['url']}#{record['md5']}" for record in records), sep="\n")
    else:
        create(base, arguments)


def create(base: Path, arguments: list[str]) -> None:
    """`conda env create` from a YAML file, `conda create` from a pin file."""
    import rattler

    parser = argparse.ArgumentParser(prog="conda")
    parser.add_argument("command", nargs="+", choices=["env", "create"])
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--prefix", type=Path, required=True)
    for flag in ("--quiet", "--no-default-packages", "--yes"):
        parser.add_argument(flag, action="store_true")
    asked = parser.parse_args(arguments)
    text = asked.file.read_text()
    if asked.command == ["env", "create"]:
        channels, specs, pip = environment(text)
    else:
        pins = re.findall(r"^(\S+)#\w+$", text, re.M)
        names = [Path(url).name.removesuffix(".tar.bz2") for url in pins]
        specs = [re.sub(r"-([^-]+)-([^-]+)$", r" ==\1 \2", name) for name in names]
        channels, pip = ["conda-forge"], []

    async def build() -> None:
        sources = [rattler.Channel((base / "channels" / name).as_uri()) for name in channels]
        records = await rattler.solve(sources, specs, platforms=["linux-64", "noarch"])
        await rattler.install(records, asked.prefix, cache_dir=base / "pkgs", show_progress=False)

    asyncio.run(build())
    if pip:
        # As conda does: beside the file, so that relative paths in the section would be seen to fail.
        wanted = asked.file.with_suffix(".requirements.txt")
        wanted.write_text("\n".join(pip))
        command = [asked.prefix / "bin/python", "-m", "pip", "install", "-U", "-r", wanted]
        subprocess.run(command, cwd=asked.file.parent, check=True)


def environment(text: str) -> tuple[list[str], list[str], list[str]]:
    """Channels, specs and the pip section of an environment file."""
    import yaml

    file = yaml.safe_load(text)
    channels = [name for name in file["channels"] if name != "nodefaults"]
    specs = [entry for entry in file["dependencies"] if isinstance(entry, str)]
    pip = [line for e in file["dependencies"] if isinstance(e, dict) for line in e["pip"]]
    return channels, specs, pip


def make_channel(place: Path) -> None:
    """A channel that holds python and pip, as they run here."""
    import rattler.index

    for subdir in ("linux-64", "noarch"):
        (place / subdir).mkdir(parents=True)
    home = Path(sys.base_prefix)
    library = Path(sysconfig.get_path("stdlib")).relative_to(home)
    unwanted = re.compile(r"/(site-packages|dist-packages|test|config-[^/]*|__pycache__)(/|$)")
    files = [p for p in (home / library).rglob("*") if not unwanted.search(str(p))]
    files += [*(home / "bin").glob("python*"), *(home / "lib").glob("libpython*.so*")]
    version = ".".join(map(str, sys.version_info[:3]))
    named = {str(p.relative_to(home)): p for p in files if not p.is_dir() or p.is_symlink()}
    pack(place, named, home, name="python", version=version, subdir="linux-64", depends=[])
    pip = importlib.metadata.distribution("pip")
    named = {f"site-packages/{p}": Path(p.locate()) for p in pip.files or ()}
    named = {n: p for n, p in named.items() if ".." not in n and "__pycache__" not in n}
    pack(place, named, home, name="pip", version=pip.version, subdir="noarch",
         depends=["python"], noarch="python")  # fmt: skip
    asyncio.run(rattler.index.index_fs(place))


def pack(channel: Path, files: dict[str, Path], home: Path, **index: object) -> None:
    """A conda package in its older format, for which the standard library suffices."""
    paths = []
    stem = f"{index['name']}-{index['version']}-0.tar.bz2"
    target = channel / str(index["subdir"]) / stem
    with tarfile.open(target, "w:bz2", compresslevel=1) as archive:
        for name, file in files.items():
            archive.add(file, name, recursive=False)
            entry: dict[str, object] = {"_path": name, "path_type": "softlink"}
            if not file.is_symlink():
                data = file.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                entry |= {"path_type": "hardlink", "sha256": digest, "size_in_bytes": len(data)}
                if b"\0" not in data and str(home).encode() in data:
                    # To be replaced by the environment's prefix when linked.
                    entry |= {"file_mode": "text", "prefix_placeholder": str(home)}
            paths.append(entry)
        index |= {"build": "0", "build_number": 0}
        info: dict[str, object] = {"index": index, "paths": {"paths": paths, "paths_version": 1}}
        if "noarch" in index:
            points = {"type": "python", "entry_points": ["pip = pip._internal.cli.main:main"]}
            info["link"] = {"noarch": points, "package_metadata_version": 1}
        for name, content in info.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"info/{name}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


# ------------------------------------------------------------------ the check


def make_base(base: Path) -> None:
    """Snakemake, alone, and the stand-in beside it."""
    locked = (ROOT / "constraints.txt").read_text()
    pin = next(line for line in locked.splitlines() if line.startswith("snakemake=="))
    venv.create(base, with_pip=True)
    python = base / "bin/python"
    command = [python, "-m", "pip", "install", "-q", pin, RATTLER, "-c", ROOT / "constraints.txt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    (base / "bin/activate").write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    (base / "condabin").mkdir()
    shim = base / "condabin/conda"
    shim.write_text(f'#!/bin/sh\nexec "{python}" -I "{__file__}" --conda "{base}" "$@"\n')
    shim.chmod(0o755)
    place = base / "channels/conda-forge"
    subprocess.run([python, __file__, "--channel", place], check=True)


def make_project(place: Path, names: list[str]) -> None:
    """A copy of the project with one more rule, which says where its imports come from."""
    from projects import copy_project  # not at the top: the stand-in runs without this folder

    copy_project(place)
    with (place / "Snakefile").open("a") as file:
        file.write(PROBE.format(names=names))
    (place / "workflow/scripts/probe.py").write_text(PROBE_SCRIPT)


def modules(scripts: Path) -> list[str]:
    """Every module of the library, and all that it and the scripts import, at the top or later."""
    found = set()
    for path in scripts.rglob("*.py"):
        if scripts != path.parent:
            found.add(".".join(path.relative_to(scripts).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return sorted(name.removesuffix(".__init__") for name in found - {"__future__"})


def check_origins(found: dict[str, str | None], prefix: Path, scripts: Path) -> None:
    """All from the environment, and the library from the project."""
    for name, file in found.items():
        own = name.split(".")[0] in ("veil", "job")
        assert file is None or Path(file).is_relative_to(scripts if own else prefix), (name, file)
    assert all(found[name] for name in ("torch", "numpy", "nibabel", "veil.privacy.ledger"))


def main(folder: Path, targets: list[str]) -> None:
    base, project = folder / "base", folder / "project"
    scripts = project / "workflow/scripts"
    names = modules(ROOT / "workflow/scripts")
    tiny = ("--configfile", "tests/fixtures/tiny.yaml", "--")
    environ = {**os.environ, "PATH": f"{base}/condabin:{os.environ['PATH']}"}

    def snakemake(*arguments: str, where: Path = project) -> str:
        asked = ("--cores", "2", *arguments, *tiny, *targets, "probe.json")
        done = subprocess.run([base / "bin/snakemake", *asked], cwd=where, env=environ, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def step(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    began = time.monotonic()
    if not base.exists():
        make_base(base)
        step("Snakemake alone, stand-in and channel")
    if not project.exists():
        make_project(project, names)
    snakemake("--use-conda", "--conda-create-envs-only")
    (done,) = (project / ".snakemake/conda").glob("*.env_setup_done")
    prefix = done.with_suffix("")
    step("environment made")

    # Outside Snakemake: no search path but the environment's and the library's.
    command = [prefix / "bin/python", "-I", "-c", IMPORTS, scripts, *names]
    output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    check_origins(json.loads(output), prefix, scripts)
    step(f"{len(names)} modules imported outside Snakemake, from environment and library")

    # A job must not see the caller's PYTHONPATH.
    (folder / "decoy").mkdir(exist_ok=True)
    (folder / "decoy/nibabel.py").write_text("raise RuntimeError('a decoy')")
    environ["PYTHONPATH"] = str(folder / "decoy")
    snakemake("--use-conda")
    del environ["PYTHONPATH"]
    check_origins(json.loads((project / "probe.json").read_text()), prefix, scripts)
    step("study run; the same modules imported in a job")

    assert "Nothing to be done" in snakemake("-n", "--use-conda")
    step("nothing left to be done")
    other = snakemake("-n")
    assert CHANGED in other
    relaxed = ("--rerun-triggers", "mtime", "params", "input")
    assert "Nothing to be done" in snakemake("-n", *relaxed)
    step("without conda all would be made again, but for --rerun-triggers mtime params input")
    moved = project.rename(folder / "moved")
    assert CHANGED in snakemake("-n", "--use-conda", where=moved)
    fixed = ("-n", "--use-conda", "--conda-prefix", str(project / ".snakemake/conda"))
    assert "Nothing to be done" in snakemake(*fixed, where=moved)
    shutil.rmtree(project)  # even a dry run makes the folder of the prefix
    moved.rename(project)
    step("and so it would after a move, but for a --conda-prefix that stays")

    # Why there is no pin file beside the environment file.
    listing = [base / "condabin/conda", "list", "--explicit", "--prefix", prefix]
    pins = subprocess.run(listing, check=True, text=True, stdout=subprocess.PIPE).stdout
    (project / "workflow/envs/veil.linux-64.pin.txt").write_text(pins)
    snakemake("--use-conda", "--conda-create-envs-only")
    envs = {p.with_suffix("") for p in (project / ".snakemake/conda").glob("*.env_setup_done")}
    (pinned,) = envs - {prefix}
    assert not list(pinned.glob("lib/python*/site-packages/torch"))
    (project / "workflow/envs/veil.linux-64.pin.txt").unlink()
    shutil.rmtree(pinned)
    pinned.with_suffix(".env_setup_done").unlink()
    step("an environment made from a pin file has no pip section, and so no torch")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--conda"]:
        answer(Path(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1:2] == ["--channel"]:
        make_channel(Path(sys.argv[2]))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("targets", nargs="*", default=[TARGET])
        parser.add_argument("--keep", type=Path, help="work here, and leave it")
        wish = parser.parse_args()
        if wish.keep:
            wish.keep.mkdir(exist_ok=True)
            main(wish.keep.resolve(), wish.targets)
        else:
            with tempfile.TemporaryDirectory(prefix="veil-conda-") as folder:
                main(Path(folder).resolve(), wish.targets)
