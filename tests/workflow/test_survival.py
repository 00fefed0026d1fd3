"""Faults of machines and people: each is refused by name or survived, and nothing is lost."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from projects import SNAKEMAKE, TINY, copy_project, rules_of, snakemake

from veil import artifacts

DATA = "results/first/data"
POINT = "results/first/wgan/sigma-2/seed-0"
WEIGHTS = f"{POINT}/generator/weights.safetensors"
LONGER = (*TINY, "--config", "generators={wgan: {generator_updates: 100000}}")
PRIVATE_MOUNTS = ("unshare", "--mount", "--map-root-user")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project with one generator trained and sampled."""
    place = copy_project(tmp_path_factory.mktemp("finished"))
    done = snakemake(place, *TINY, "--", f"{POINT}/synthetic/pairs.npy", f"{DATA}/test_patches.npy")
    assert done.returncode == 0, done.stdout[-3000:]
    return place


@pytest.fixture
def project(finished, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))


def started(place: Path, *arguments: str) -> subprocess.Popen:
    """A run in its own process group, once its training has its state to itself."""
    run = subprocess.Popen(
        [SNAKEMAKE, "--cores", "1", *LONGER, "--", *arguments], cwd=place, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lock = place / POINT / "generator/.state.lock"
    for _ in range(3000):
        if lock.exists() or run.poll() is not None:
            break
        time.sleep(0.1)
    assert lock.exists(), "the run did not come to its training"
    assert run.poll() is None, "the run ended before it trained"
    return run


def damage(path: Path, how: str) -> None:
    """Change a file as disks and hands do, and keep its time, so that no workflow engine sees it."""
    when = path.stat()
    content = bytearray(path.read_bytes())
    if how == "emptied":
        content.clear()
    elif how == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))


# ------------------------------------------------------------------ damaged results

READERS = {
    f"{DATA}/patches.npy": WEIGHTS,
    f"{DATA}/patches.tsv": WEIGHTS,
    f"{DATA}/manifest.tsv": f"{DATA}/patches.npy",
    f"{DATA}/bids": f"{DATA}/manifest.tsv",
    WEIGHTS: f"{POINT}/synthetic/pairs.npy",
    f"{POINT}/generator/privacy.json": f"{POINT}/scores/membership.tsv",
    f"{POINT}/synthetic/pairs.npy": f"{POINT}/scores/similarity.tsv",
}


@pytest.mark.parametrize("how", ["emptied", "cut", "flipped"])
def test_every_damage_is_found_by_name(project, how):
    """All at once, by the target that looks at everything; times are as before."""
    damaged = []
    for name in READERS:
        place = project / name
        damage(next(place.rglob("*.nii.gz")) if place.is_dir() else place, how)
        damaged.append(name)
    assert (
        "Nothing to be done"
        in snakemake(project, *TINY, "--", f"{POINT}/synthetic/pairs.npy").stdout
    )
    done = snakemake(project, *TINY, "--", "verify")
    assert done.returncode != 0
    for name in damaged:
        assert f"{name}: its SHA-256 is not" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(("name", "reader"), READERS.items(), ids=READERS)
def test_a_damaged_result_is_refused_where_it_is_read(project, name, reader):
    place = project / name
    damage(next(place.rglob("*.nii.gz")) if place.is_dir() else place, "flipped")
    done = snakemake(project, *TINY, "--force", "--", reader)
    assert done.returncode != 0
    assert f"{name}: its SHA-256 is not" in done.stdout, done.stdout[-2000:]
    assert "Traceback" not in done.stdout


def test_undamaged_results_verify(project):
    done = snakemake(project, *TINY, "--", "verify")
    assert done.returncode == 0
    assert "results and 0 bundles are as their jobs left them; 0 results were del" in done.stdout


def test_a_damaged_seal_is_named(project):
    seal = project / DATA / ".patches.tsv.sha256"
    for text in (b"", b"\xff" * 65):
        seal.write_bytes(text)
        done = snakemake(project, *TINY, "--force", "--", WEIGHTS)
        assert done.returncode != 0
        assert "patches.tsv.sha256: damaged; allowed: the SHA-256 of patches.tsv" in done.stdout
        assert "Traceback" not in done.stdout


def test_a_damaged_result_is_made_again_once_it_is_deleted(project):
    pairs = project / POINT / "synthetic/pairs.npy"
    before = pairs.read_bytes()
    damage(pairs, "flipped")
    pairs.unlink()
    assert snakemake(project, *TINY, "--", f"{POINT}/synthetic/pairs.npy").returncode == 0
    assert pairs.read_bytes() == before
    assert snakemake(project, *TINY, "--", "verify").returncode == 0


# ------------------------------------------------------------------ disks


def in_a_namespace(project: Path, *steps: str) -> subprocess.CompletedProcess:
    """Shell steps with mounts of their own, which nobody else sees and which end with them."""
    if subprocess.run([*PRIVATE_MOUNTS, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives no mount namespaces")
    return subprocess.run(
        [*PRIVATE_MOUNTS, "bash", "-c", "\n".join(steps)], cwd=project, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def test_a_full_disk_is_said_and_survived(project):
    run = f"{SNAKEMAKE} --cores 1 {' '.join(TINY)} -- {DATA}/validation_patches.npy"
    done = in_a_namespace(
        project,
        "mount -t tmpfs -o size=100m tmpfs .snakemake",
        "cp -a results kept && mount -t tmpfs -o size=8m tmpfs results && cp -a kept/. results/",
        "head -c 20m /dev/zero > results/filler 2> /dev/null",
        run,
        "echo == full; ls -A results/first/data; echo == room; rm results/filler",
        f"{run} && echo == after && ls -A results/first/data",
    )
    assert "No space left on device" in done.stdout, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    left = done.stdout.split("== full")[1].split("== room")[0].split()
    assert "patches.npy" in left
    assert not [name for name in left if "validation_patches" in name]
    assert "validation_patches.npy" in done.stdout.split("== after")[1].split()


def test_a_read_only_place_is_said(project):
    run = f"{SNAKEMAKE} --cores 1 {' '.join(TINY)} -- {DATA}/validation_patches.npy"
    done = in_a_namespace(
        project, "mount --bind results results && mount -o remount,ro,bind results", run
    )
    assert done.returncode != 0
    assert "Read-only file system" in done.stdout, done.stdout[-3000:]
    assert snakemake(project, *TINY, "--", "verify").returncode == 0


# ------------------------------------------------------------------ two at once, and killed


def test_a_second_run_is_refused_while_one_goes_on(project):
    shutil.rmtree(project / POINT)
    run = started(project, WEIGHTS)
    try:
        done = snakemake(project, *LONGER, "--", WEIGHTS)
        assert done.returncode != 0
        assert "Directory cannot be locked" in done.stdout
    finally:
        os.killpg(run.pid, 9)
        run.wait()


def test_an_orphan_of_a_killed_driver_is_not_trained_beside(project):
    """Its job trains on; a second one must not write the same checkpoint."""
    shutil.rmtree(project / POINT)
    run = started(project, WEIGHTS)
    try:
        os.kill(run.pid, 9)
        run.wait()
        assert snakemake(project, "--unlock", *LONGER).returncode == 0
        done = snakemake(project, *LONGER, "--", WEIGHTS)
        assert done.returncode != 0
        assert "generator/.state.lock: held by another process" in done.stdout
        assert "Traceback" not in done.stdout
    finally:
        os.killpg(run.pid, 9)
    # Once the orphan is ended the lock is free, or this raises.
    with artifacts.alone(project / POINT / "generator/.state.lock"):
        pass


# ------------------------------------------------------------------ clocks


def test_results_from_the_future_are_used_and_not_trained_again(project):
    """A node whose clock runs ahead writes files that seem newer than what was made of them."""
    ahead = time.time() + 86400
    for path in (project / DATA).glob("*.tsv"):
        os.utime(path, (ahead, ahead))
    assert "train_generator" not in rules_of(snakemake(project, "-n", *TINY, "--", WEIGHTS).stdout)


def test_what_reads_a_result_from_the_future_is_refused_before_it_works(project):
    """Snakemake by itself would work first, and delete what came of it."""
    (project / WEIGHTS).unlink()
    patches = project / DATA / "patches.npy"
    ahead = time.time() + 86400
    os.utime(patches, (ahead, ahead))
    done = snakemake(project, *TINY, "--", WEIGHTS)
    assert done.returncode and f"{DATA}/patches.npy: last written at" in done.stdout
    os.utime(patches)
    assert snakemake(project, *TINY, "--", WEIGHTS).returncode == 0


def test_lost_bookkeeping_trains_nothing_again(project):
    shutil.rmtree(project / ".snakemake")
    done = snakemake(project, *TINY, "--", f"{POINT}/synthetic/pairs.npy")
    assert "Nothing to be done" in done.stdout


def test_a_volume_changed_under_its_name_is_found(project):
    """The same bytes long, the same time: a scan exchanged for another one."""
    scan = next((project / DATA / "bids").rglob("*_angio.nii.gz"))
    when = scan.stat()
    voxels = bytearray(gzip.decompress(scan.read_bytes()))
    voxels[-1] ^= 1
    scan.write_bytes(gzip.compress(bytes(voxels), mtime=0))
    os.utime(scan, ns=(when.st_atime_ns, when.st_mtime_ns))
    done = snakemake(project, *TINY, "--", "verify")
    assert f"{DATA}/bids: its SHA-256 is not" in done.stdout
