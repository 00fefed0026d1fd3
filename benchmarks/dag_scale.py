"""How long the DAG takes to plan and to look over again, by the number of its points.

    .venv/bin/python benchmarks/dag_scale.py [--points 100 1000] [--without schedule] [--batches 10]

For each size, in a copy of the project: a dry run from nothing; then every result is put in place
as an empty file, and a dry run says that there is nothing to do, as in a fresh clone; at last
`--touch` schedules every job without running it. With batches, only the first of them is planned
(`--batch gather_scores=1/N -- gather_scores`). Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
FOLDERS = ("bids", "errors")


def copy_project(place: Path, points: int) -> None:
    """The project, and a study of so many points in `scale.yaml`."""
    for part in ("config", "profiles", "workflow"):
        shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", place)
    seeds = ", ".join(map(str, range(points // 2)))
    (place / "scale.yaml").write_text(
        "name: scale\npoints:\n"
        f"  - {{generator: wgan, privacy: [sigma-1, sigma-2], seeds: [{seeds}]}}\n"
    )


def run(place: Path, *arguments: str) -> tuple[str, float, float, float]:
    """Snakemake's output, CPU seconds, seconds and peak memory in MB."""
    command = [str(SNAKEMAKE), "--cores", "2", "--configfile", "scale.yaml", *arguments]
    with tempfile.TemporaryFile("w+") as file:
        start = time.monotonic()
        job = subprocess.Popen(command, cwd=place, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(job.pid, 0)
        seconds = time.monotonic() - start
        file.seek(0)
        text = file.read()
    if status:
        sys.exit(text[-3000:])
    return text, usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss / 1024


def put_in_place(place: Path) -> int:
    """Every output that a summary names, empty and of one time; how many there are."""
    text, *_ = run(place, "--summary")
    rows = [line.split("\t") for line in text.splitlines() if line.startswith("results/")]
    for name in (row[0] for row in rows):
        path = place / name
        if path.name in FOLDERS:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    now = time.time()
    for path in (place / "results").rglob("*"):
        os.utime(path, (now, now))
    return len(rows)


def measure(points: int, batches: int, without: list[str]) -> str:
    """One row of the table."""
    part = ("--batch", f"gather_scores=1/{batches}", "--", "gather_scores") if batches > 1 else ()
    shown = f"{points:,}" + (f", first of {batches} batches" if part else "")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copy_project(place, points)
        text, cpu, seconds, memory = run(place, "-n", "--quiet", "rules", *part)
        jobs = int(text.rsplit("\ntotal", 1)[1].split()[0])
        row = (
            f"| {shown} | {jobs:,} | {cpu:.0f} s | {seconds:.0f} s | {memory:.0f} MB "
            f"| {1e3 * cpu / jobs:.1f} ms |"
        )
        look = schedule = "-"
        if not part and not {"look", "schedule"} <= set(without):
            put_in_place(place)
        if not part and "look" not in without:
            text, *again = run(place, "-n", "--quiet", "rules")
            assert "Nothing to be done" in text, text[-2000:]
            look = f"{again[0]:.0f} s, {again[2]:.0f} MB"
        if not part and "schedule" not in without:
            _, both, *_ = run(place, "--touch", "--quiet", "all")
            schedule = f"{1e3 * (both - cpu) / jobs:.1f} ms"
    return f"{row} {schedule} | {look} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--without", nargs="+", choices=["look", "schedule"], default=[])
    parser.add_argument("--batches", type=int, default=1)
    options = parser.parse_args()
    print(
        "| points | jobs | plan, CPU | wall | memory | plan, CPU a job | schedule, CPU a job "
        "| look over finished results |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for points in options.points:
        print(measure(points, options.batches, options.without), flush=True)


if __name__ == "__main__":
    main()
