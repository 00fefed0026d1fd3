"""The private step against the plain one, beside every peer: time and memory, in one run.

    .venv/bin/python benchmarks/private_step.py [--rounds 3] [--fastdp CHECKOUT]
        [--before CHECKOUT] [case ...]

A step is gradients of real and fake records (or of a denoiser's batch), clipped record by record,
noised, and given to RMSprop. Each method has a process of its own, where it takes turns with the
plain step, so that a machine that drifts slows both and no method meets another's leftovers; the
table shows ratios of medians. Memory is what one step needs above what stood before it. Each
method's gradient without noise is compared with ours. fast-differential-privacy is on no package
index: give its checkout. With that of an older Veil, whose noise was in floating point, a step as
it was then stands in the table as well.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import steps
import torch
from steps import CASES, METHODS, SIGMA, plain, veil

LIMIT = 20 * 2**30  # bytes a method may take


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def memory(case: str, method: str) -> dict[str, float]:
    """Bytes that the second step needs above what stood before the first."""
    step = METHODS[method](CASES[case](), SIGMA)
    gc.collect()
    before = resident("VmRSS")
    step()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    step()
    return {"bytes": resident("VmHWM") - before}


def error(case: str, method: str) -> dict[str, float]:
    """Distance of a method's gradient, without noise, from ours."""
    theirs = METHODS[method](CASES[case](), 0.0)()
    ours = veil(CASES[case](), 0.0)()
    gap = sum(float((a - b).square().sum()) for a, b in zip(theirs, ours, strict=True))
    return {"error": (gap / sum(float(b.square().sum()) for b in ours)) ** 0.5}


def times(case: str, method: str, rounds: int) -> dict[str, float]:
    """Median CPU seconds of a plain step and of the method's: other work disturbs these less.

    Of several rounds the first warms up; a single one, for steps of minutes, counts.
    """
    pair = {"plain": plain(CASES[case](), SIGMA), "method": METHODS[method](CASES[case](), SIGMA)}
    found: dict[str, list[float]] = {name: [] for name in pair}
    for turn in range(rounds + (rounds > 1)):
        for name, step in pair.items():
            start = time.process_time()
            step()
            if turn or rounds == 1:
                found[name].append(time.process_time() - start)
    return {name: statistics.median(held) for name, held in found.items()}


def apart(what: str, *arguments: str, options: list[str]) -> dict[str, float] | str:
    """Run one of the measurements in a process of its own; a failure comes back as text."""
    command = [sys.executable, __file__, *options, "--measure", what, *arguments]
    # For peaks, large blocks go back to the system when freed, so that they are of what is in use.
    tight = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = {**os.environ, **(tight if what == "memory" else {})}
    done = subprocess.run(command, text=True, capture_output=True, check=False, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["killed"]
    starved = "can't allocate" in lines[-1] or "not enough memory" in done.stderr or not done.stderr
    return "out of memory" if starved else lines[-1][:90]


def table(case: str, rounds: int, options: list[str]) -> None:
    asked = [name for name in METHODS if steps.BEFORE or name != "Veil before"]
    needs = {name: apart("memory", case, name, options=options) for name in asked}
    able = [name for name, found in needs.items() if not isinstance(found, str)]
    others = [name for name in able if name not in ("plain", "plain, channels_last", "**Veil**")]
    errors = {name: apart("error", case, name, options=options) for name in others}
    seconds = {name: apart("times", case, name, str(rounds), options=options) for name in able}
    base, bare = needs["plain"], seconds["plain"]
    assert isinstance(base, dict), base
    assert isinstance(bare, dict), bare
    print(f"\n{case}: the plain step takes {bare['plain']:.3g} CPU s and "
          f"{base['bytes'] / 2**20:.0f} MB\n")  # fmt: skip
    print("| method | time | memory | gradient differs by |\n|---|---|---|---|")
    for name, found in needs.items():
        if isinstance(found, str):
            print(f"| {name} | – | {found} | – |")
            continue
        gap = errors.get(name, "")
        shown = f"{gap['error']:.1e}" if isinstance(gap, dict) else gap
        spent = seconds[name]
        ratio = spent if isinstance(spent, str) else f"{spent['method'] / spent['plain']:.2f}"
        space = found["bytes"] / base["bytes"]
        print(f"| {name} | {ratio} | {space:.2f} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fastdp", default="", help="a checkout of fast-differential-privacy")
    parser.add_argument("--before", default="", help="a checkout of an older Veil")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all, if none is named")
    asked = parser.parse_args()
    if asked.fastdp:
        sys.path.append(asked.fastdp)
    if asked.before:
        steps.BEFORE = Path(asked.before).resolve()
    torch.set_num_threads(asked.threads)
    if asked.measure:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        what, case, *rest = asked.measure
        if what == "times":
            print(json.dumps(times(case, rest[0], int(rest[1]))))
        else:
            print(json.dumps({"memory": memory, "error": error}[what](case, *rest)))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "opacus", "diffusers"))
    print(f"{datetime.date.today()}, {platform.machine()}, threads: {asked.threads}, {versions}")
    options = ["--fastdp", asked.fastdp, "--before", asked.before]
    options += ["--threads", str(asked.threads)]
    for case in asked.cases or CASES:
        table(case, asked.rounds, options)


if __name__ == "__main__":
    main()
