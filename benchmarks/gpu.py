"""Private training on a GPU: the step against its peers, what is quick and safe, noise, resuming.

    benchmarks/gpu.sh [--minutes 8] [--tiny] [--fastdp CHECKOUT] [section ...]

Writes one table a section to stdout and, if the variable OUT names a folder, to `gpu.md` and
`gpu.json` there. Each section has a process and a limit of time of its own; a method that fails
leaves its error in the table, and what there was no time for is said. `--tiny` runs all of it at
sizes for a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import steps
import torch
from steps import CLIP, METHODS, SIGMA, Case
from torch import Tensor

from veil import artifacts, config, generators, training
from veil.privacy import chacha, clipping, noise
from veil.privacy.mechanism import SLACK, ChargeError
from veil.privacy.noise import Lattice, rounded_normal
from veil.privacy.randomness import Seeded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UPDATES = 64_050  # of the paper's generator, each after 5 of the critic
PAPER = config.WganGenerator(
    kind="wgan", generator_width=96, critic_width=96, learning_rate=5e-5, generator_updates=UPDATES
)
PAPER_DENOISER = config.DiffusionGenerator(
    kind="diffusion", channels=(32, 64, 128, 256), steps=1000, batch_size=2048, multiplicity=4,
    learning_rate=5e-4,
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    cases: dict[str, Callable[[], Case]]
    moded: tuple[str, ...]
    """Cases that are put through every mode; the first is compiled too."""
    coordinates: dict[str, list[int]]
    equal: int
    wgan: config.WganGenerator
    denoiser: config.DiffusionGenerator
    records: int
    size: int
    together: tuple[int, ...]
    seconds: float
    """How long one timing may take."""
    resumed: dict[str, config.Generator]
    resumed_size: int


def paper() -> Sizes:
    """The paper's."""
    small = {"generator_width": 32, "critic_width": 32, "generator_updates": 8, "batch_size": 32}
    wide, wider = (f"critic, width 96 (the paper's), batch {n}" for n in (32, 128))
    unet = "U-Net denoiser, batch 16"
    return Sizes(
        cases={name: steps.CASES[name] for name in (wide, wider, unet)},
        moded=(wide, unet),
        coordinates={"7 million": [7_000_000], "the paper's critic": parts_of_the_critic(96)},
        equal=1_000_000, wgan=PAPER, denoiser=PAPER_DENOISER, records=41_000, size=96,
        together=(1, 2, 4, 8), seconds=2.0, resumed_size=48,
        resumed={
            "wgan": PAPER.model_copy(update=small),
            "diffusion": PAPER_DENOISER.model_copy(
                update={"channels": (32, 64), "steps": 8, "batch_size": 64}
            ),
        },
    )  # fmt: skip


def tiny() -> Sizes:
    """For a CPU and a minute."""
    wgan = PAPER.model_copy(
        update={"generator_width": 4, "critic_width": 4, "batch_size": 4},
    )
    denoiser = PAPER_DENOISER.model_copy(
        update={"channels": (4, 8), "batch_size": 4, "multiplicity": 2}
    )
    resumed = {
        "wgan": wgan.model_copy(update={"generator_updates": 3}),
        "diffusion": denoiser.model_copy(update={"steps": 3}),
    }
    return Sizes(
        cases={
            "critic, width 4, batch 4": lambda: steps.critic(4, 4, 16),
            "U-Net denoiser, batch 2": lambda: steps.denoiser(2, 16, (8, 16, 16)),
        },
        moded=("critic, width 4, batch 4",),
        coordinates={"70 thousand": [70_000], "a small critic": parts_of_the_critic(4)},
        equal=20_000, wgan=wgan, denoiser=denoiser, records=60, size=16, together=(1, 2),
        seconds=0.05, resumed=resumed, resumed_size=16,
    )  # fmt: skip


def parts_of_the_critic(width: int) -> list[int]:
    return [p.numel() for p in steps.critic(width, 1).module.parameters()]


# ------------------------------------------------------------------ one section's process


@dataclass
class Section:
    """What a section measures with, and where its rows go."""

    name: str
    sizes: Sizes
    folder: Path
    deadline: float
    small: bool
    fastdp: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, measure: Callable[[], dict[str, Any]], **named: Any) -> dict[str, Any]:
        """Add a row: its names, and what is measured, or why that failed."""
        tell(f"{self.name}: {', '.join(str(value) for value in named.values())}")
        if time.time() > self.deadline:
            found = {"failed": "not measured: out of time"}
        else:
            try:
                found = measure()
            except Exception as error:
                found = {"failed": in_short(error)}
        self.write({**named, **found})
        release_memory()
        return found

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps({"section": self.name, **row}) + "\n")


def tell(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def in_short(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {line[:80]}"


def release_memory() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], seconds: float, most: int = 20) -> float:
    """Median milliseconds on a clock that waits for the device, after calls to warm up."""
    found: list[float] = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        wait()
        if time.perf_counter() - start > seconds:
            break  # one is enough of what takes so long
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn and time.perf_counter() > end:
            break
        start = time.perf_counter()
        work()
        wait()
        found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found)


def memory_of(step: steps.Step, before: int) -> float | None:
    """Megabytes that a step needs above what stood before the first one."""
    if DEVICE.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def standing() -> int:
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


# ------------------------------------------------------------------ the step and its peers


def step_of_every_method(section: Section) -> None:
    """As torch is by default: TF32 in convolutions, but not where records are clipped."""
    if section.fastdp:
        sys.path.append(section.fastdp)
    skipped = {"Veil before"} | (set() if section.fastdp else {"fast-differential-privacy"})
    for case, make in section.sizes.cases.items():
        plain = None
        for name, method in METHODS.items():
            if name in skipped:
                continue
            found = section.row(
                partial(one_method, make, method, plain, section.sizes.seconds),
                case=case, method=name,
            )  # fmt: skip
            plain = plain or found.get("ms")


def one_method(
    make: Callable[[], Case],
    method: Callable[[Case, float], steps.Step],
    plain: float | None,
    seconds: float,
) -> dict[str, Any]:
    case = make().to(DEVICE)
    before = standing()
    step = method(case, SIGMA)
    spent = timed(step, seconds)
    return {
        "ms": spent, "of the plain step": spent / (plain or spent),
        "MB": memory_of(step, before),
    }  # fmt: skip


# ------------------------------------------------------------------ modes, and which are safe


@dataclass(frozen=True)
class Mode:
    """How forward and backward pass are computed."""

    convolutions: bool = False
    """In TF32."""
    products: bool = False
    half: bool = False
    """Autocast to bfloat16."""
    last: bool = False
    tuned: bool = False
    """cuDNN times its algorithms."""
    compiled: str = ""
    """`module`, or `between`: layers without parameters, which no tap hangs on."""


MODES = {
    "float32": Mode(),
    "TF32 in convolutions (torch's default)": Mode(convolutions=True),
    "TF32": Mode(convolutions=True, products=True),
    "bfloat16": Mode(half=True),
    "float32, channels_last": Mode(last=True),
    "TF32, channels_last": Mode(convolutions=True, products=True, last=True),
    "bfloat16, channels_last": Mode(half=True, last=True),
    "float32, algorithms timed": Mode(tuned=True),
    "TF32, algorithms timed": Mode(convolutions=True, products=True, tuned=True),
    "float32, compiled between layers": Mode(compiled="between"),
    "TF32, compiled between layers": Mode(convolutions=True, products=True, compiled="between"),
    "bfloat16, channels_last, compiled between": Mode(half=True, last=True, compiled="between"),
    "float32, module compiled": Mode(compiled="module"),
    "TF32, module compiled": Mode(convolutions=True, products=True, compiled="module"),
}


def every_mode(section: Section) -> None:
    for case in section.sizes.moded:
        make = section.sizes.cases[case]
        exact = None
        for name, mode in MODES.items():
            if mode.compiled and case != section.sizes.moded[0]:
                continue
            if exact is None:
                tell(f"{section.name}: {case} in float64")
                exact = [part.cpu() for part in clipped(make().double().to(DEVICE))]
                release_memory()
            section.row(partial(one_mode, section, make, mode, exact), case=case, mode=name)


def one_mode(
    section: Section, make: Callable[[], Case], mode: Mode, exact: list[Tensor]
) -> dict[str, Any]:
    with arithmetic(mode):
        case = in_mode(make().to(DEVICE), mode, quickly=section.small)
        moved = furthest_move(case)
        off = distance(clipped(case), exact)
        before = standing()
        step = steps.veil(case, SIGMA)
        spent = timed(step, section.sizes.seconds)
        needed = memory_of(step, before)
        plain = timed(steps.plain(case, SIGMA), section.sizes.seconds)
    return {
        "a record moves the sum by": moved,
        "safe": "yes" if moved <= 1 else "**not allowed**",
        "off float64 by": off, "ms": spent, "plain, same mode, ms": plain, "MB": needed,
    }  # fmt: skip


@contextmanager
def arithmetic(mode: Mode) -> Iterator[None]:
    """Within, float32 is computed as the mode says."""
    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.allow_tf32, cudnn.benchmark
    passes, clipping._pass_precision = clipping._pass_precision, nullcontext
    cudnn.allow_tf32, cudnn.benchmark = mode.convolutions, mode.tuned
    torch.set_float32_matmul_precision("high" if mode.products else "highest")
    try:
        yield
    finally:
        clipping._pass_precision = passes
        cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_float32_matmul_precision(products)


def in_mode(case: Case, mode: Mode, quickly: bool) -> Case:
    """The case in the mode; `quickly` compiles without generating code."""
    compiler = "eager" if quickly else "inductor"
    case = steps.channels_last(case) if mode.last else case
    call: Any = case.module
    if mode.compiled == "module":
        call = torch.compile(case.module, backend=compiler)
    elif mode.compiled == "between":
        for layer in case.module.modules():
            if not list(layer.children()) and not list(layer.parameters()):
                layer.compile(backend=compiler)

    def losses(module: torch.nn.Module, *inputs: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mode.half):
            found = case.losses(call, *inputs)
        return found if found.dtype == torch.float64 else found.float()

    return replace(case, losses=losses)


def clipped(case: Case) -> list[Tensor]:
    """The sum before noise: in these cases every record is longer than the clip norm."""
    return clipping.clipped_sum(case.module, partial(case, case.module), case.records, CLIP)[0]


def furthest_move(case: Case) -> float:
    """How far one record less moves the sum that meets the noise, in clip norms charged.

    The first, one in the middle, the last. At most 1, or the charge is wrong.
    """
    charged = CLIP * (1 + SLACK)
    lattice = Lattice.of(charged, sum(p.numel() for p in case.module.parameters()))
    whole = [lattice.nearest(part) for part in clipped(case)]
    found = []
    for record in (0, case.records // 2 - 1, case.records - 1):
        rest = [lattice.nearest(part) for part in clipped(case.without(record))]
        gaps = (lattice.values(a - b).square().sum() for a, b in zip(whole, rest, strict=True))
        found.append(float(sum(gaps)) ** 0.5 / charged)
    return max(found)


def distance(sums: list[Tensor], exact: list[Tensor]) -> float:
    """Relative."""
    gap = sum(
        float((a.double() - b.to(a.device)).square().sum())
        for a, b in zip(sums, exact, strict=True)
    )
    return (gap / sum(float(part.square().sum()) for part in exact)) ** 0.5


# ------------------------------------------------------------------ the noise alone


def parts_of_the_noise(section: Section) -> None:
    sizes, row = section.sizes, section.row
    row(partial(equal_noise, sizes.equal), what="noise of CPU and GPU", of=f"{sizes.equal:,}")
    for of, counts in sizes.coordinates.items():
        work: dict[str, Callable[[], object]] = {
            "torch.randn, float32": partial(torch.randn, sum(counts), device=DEVICE),
            "rounded_normal": partial(draw, sum(counts), DEVICE),
            "rounded_normal on the CPU, and sent": partial(draw, sum(counts), torch.device("cpu")),
        }
        for what, call in work.items():
            row(lambda call=call: {"ms": timed(call, sizes.seconds)}, what=what, of=of)
        row(partial(cipher, sum(counts), sizes.seconds), what="of it ChaCha20", of=of)
        row(partial(rounding, sum(counts), sizes.seconds), what="of it float64", of=of)
    count, compiler = max(map(sum, sizes.coordinates.values())), "eager" if section.small else None
    for what, measure in (
        ("float64, compiled", compiled_rounding),
        ("ChaCha20, rounds compiled", compiled_rounds),
    ):
        row(partial(measure, count, sizes.seconds, compiler), what=what, of=f"{count:,}")


def draw(count: int, where: torch.device) -> None:
    rounded_normal(Seeded(1), 2e6, count, release=0, device=where).to(DEVICE)


def equal_noise(count: int) -> dict[str, Any]:
    """Several releases and deviations; so large a one that many go through interval arithmetic."""
    different = 0
    for release, deviation in enumerate((0.7, 2e6, 2.0**21 * 1.3, 2.0**31)):
        found = [
            rounded_normal(Seeded(3), deviation, count, release=release, device=where)
            for where in ("cpu", DEVICE)
        ]
        different += int((found[0] != found[1].cpu()).sum())
    blocks = [
        chacha.keystream(bytes(range(32)), bytes(8), 2**31 - 5, 800, "cpu").view(torch.int32),
        chacha.by_torch(bytes(range(32)), bytes(8), 2**31 - 5, 100, DEVICE).flatten().cpu(),
    ]
    assert different == 0, f"{different} of {4 * count} integers differ"
    assert torch.equal(*blocks), "keystreams differ"
    return {"note": "equal integers in 4 releases"}


KEY = bytes(range(32)), bytes(8)


def cipher(count: int, seconds: float) -> dict[str, Any]:
    """As many words as deviates, in two streams."""
    blocks = -(-count // 16)

    def call() -> None:
        for _ in range(2):
            chacha.by_torch(*KEY, 0, blocks, DEVICE)

    return {"ms": timed(call, seconds)}


def words(count: int) -> tuple[Tensor, ...]:
    return tuple(Seeded(1).words(0, which, 0, -(-count // 2), DEVICE) for which in range(2))


def rounding(count: int, seconds: float) -> dict[str, Any]:
    given = words(count)
    return {"ms": timed(lambda: noise._in_float64(*given, 2e6), seconds)}


def compiled_rounds(count: int, seconds: float, compiler: str | None) -> dict[str, Any]:
    """The cipher with its rounds compiled, which must give the same words."""
    blocks, plain = -(-count // 16), chacha._round
    words = chacha.by_torch(*KEY, 0, blocks, DEVICE)
    begun = time.perf_counter()
    chacha._round = torch.compile(plain, backend=compiler or "inductor", dynamic=True)
    try:
        same = torch.equal(words, chacha.by_torch(*KEY, 0, blocks, DEVICE))
        first = time.perf_counter() - begun
        assert same, "other words than the library's"
        return cipher(count, seconds) | {"note": f"the same words; first call {first:.1f} s"}
    finally:
        chacha._round = plain


def compiled_rounding(count: int, seconds: float, compiler: str | None) -> dict[str, Any]:
    compiled = torch.compile(noise._in_float64, backend=compiler or "inductor", dynamic=True)
    given = words(count)
    begun = time.perf_counter()
    (plain, unsure), (found, also) = noise._in_float64(*given, 2e6), compiled(*given, 2e6)
    wait()
    first = time.perf_counter() - begun
    other = int((plain != found)[~(unsure | also)].sum())
    note = f"{other} sure integers differ; first call {first:.1f} s"
    return {"ms": timed(lambda: compiled(*given, 2e6), seconds), "note": note}


# ------------------------------------------------------------------ trainings


def task(settings: config.Generator, sizes: Sizes, size: int, level: str) -> config.Task:
    """Seeded noise; as many records as the paper's 41 patients have, or few."""
    patients = max(sizes.records // 1000, 1)
    return config.Task(
        settings=settings, level=config.PrivacyLevel.parse(level), seed=5, size=size,
        records=sizes.records, patients=patients, per_patient=sizes.records // patients,
        delta=1 / sizes.records,
    )  # fmt: skip


def patches(folder: Path, sizes: Sizes, size: int) -> Path:
    """Random ones: what they show changes no timing."""
    path = folder / f"patches-{size}.npy"
    if not path.exists():
        shape = (sizes.records, 2, size, size)
        drawn = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        drawn[:, 1] &= 1
        artifacts.save_pairs(path, drawn)
    return path


def fit_with(
    loop: type[training.Loop], given: config.Task, pairs: Path, state: Path
) -> generators.Generator:
    """Put the task through its generator's own `fit`, run by another loop."""
    usual, training.Loop = training.Loop, loop  # type: ignore[misc]
    try:
        generator = generators.build(given, pairs)
        generator.fit(state, DEVICE, {})
    except ChargeError:  # a stopwatch takes fewer steps than were paid for
        if loop is not Stopwatch or len(Stopwatch.paces) < sum(Stopwatch.turns):
            raise
    finally:
        training.Loop = usual  # type: ignore[misc]
    return generator


@dataclass(frozen=True, kw_only=True)
class Stopwatch(training.Loop):
    """Takes steps for some seconds, in turns that other processes take part in."""

    turns: ClassVar[list[bool]] = [True]
    """Whether this process works in each of them."""
    seconds: ClassVar[float] = 1.0
    meet: ClassVar[Callable[[], object]] = staticmethod(lambda: None)
    paces: ClassVar[list[float]] = []
    """Steps a second, in the turns that it works in."""

    def run(self, trainee: training.Trainee) -> None:
        trainee.step()  # warms up
        for works in self.turns:
            wait()
            self.meet()
            start, done = time.perf_counter(), 0
            while works and (not done or time.perf_counter() - start < self.seconds):
                trainee.step()
                wait()
                done += 1
            if works:
                self.paces.append(done / (time.perf_counter() - start))
            self.meet()


def train_beside(
    index: int, small: bool, folder: Path, barrier: Any, answers: Any, threads: int
) -> None:
    """One of several processes: trains in every turn of more than `index` of them."""
    try:
        sizes = tiny() if small else paper()
        torch.set_num_threads(threads)
        Stopwatch.turns = [index < count for count in sizes.together]
        Stopwatch.seconds = 2 * sizes.seconds
        Stopwatch.meet = staticmethod(partial(barrier.wait, 180))
        given = task(sizes.wgan, sizes, sizes.size, "sigma-0.7")
        pairs = patches(folder, sizes, sizes.size)
        fit_with(Stopwatch, given, pairs, folder / f"state-{index}")
        answers.put((index, Stopwatch.paces))
    except Exception as error:
        barrier.abort()  # the others wait for it
        answers.put((index, in_short(error)))


def trainings_together(section: Section) -> None:
    """The paper's training of critic and generator, several at once on one device."""
    sizes = section.sizes
    patches(section.folder, sizes, sizes.size)
    section.row(partial(alone, section, "none"), **{"trainings at once": 1, "privacy": "none"})
    tell(f"{section.name}: {max(sizes.together)} processes start")
    paces = paces_beside(section, max(sizes.together))
    for turn, count in enumerate(sizes.together):
        # A process has paces of the turns that it worked in: the last of all.
        section.row(
            lambda turn=turn, count=count: pace(
                [paces[i][turn - len(sizes.together)] for i in range(count)]
            ),
            **{"trainings at once": count, "privacy": "exact noise"},
        )  # fmt: skip


def paces_beside(section: Section, most: int) -> dict[int, list[float]]:
    """What each process found."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(most), context.Queue()
    threads = max((os.cpu_count() or 1) // most, 1)
    given = (section.small, section.folder, barrier, answers, threads)
    running = [
        context.Process(target=train_beside, args=(index, *given), daemon=True)
        for index in range(most)
    ]
    for process in running:
        process.start()
    paces = dict(answers.get(timeout=max(section.deadline - time.time(), 1)) for _ in running)
    for process in running:
        process.join()
    failures = [found for found in paces.values() if isinstance(found, str)]
    assert not failures, failures[0]
    return paces


def alone(section: Section, level: str) -> dict[str, Any]:
    sizes = section.sizes
    Stopwatch.paces, Stopwatch.seconds = [], 2 * sizes.seconds
    given = task(sizes.wgan, sizes, sizes.size, level)
    place = patches(section.folder, sizes, sizes.size)
    fit_with(Stopwatch, given, place, section.folder / "state-none")
    return pace(Stopwatch.paces)


def pace(updates: list[float]) -> dict[str, float]:
    """Of generator updates a second, in each process."""
    slowest = min(updates)
    return {
        "critic steps a second, all together": sum(updates) * PAPER.critic_updates,
        "ms a critic step": 1e3 / slowest / PAPER.critic_updates,
        f"minutes for one whole training ({UPDATES:,} x 5)": UPDATES / slowest / 60,
        "whole trainings a day": sum(updates) * 86400 / UPDATES,
    }


def denoisers_step(section: Section) -> None:
    """The paper-sized denoiser's: 2,048 patches, each under 4 noise levels."""
    section.row(partial(one_denoiser, section), generator="diffusion", records="2,048 x 4")


def one_denoiser(section: Section) -> dict[str, Any]:
    sizes = section.sizes
    Stopwatch.paces, Stopwatch.seconds = [], sizes.seconds
    given = task(sizes.denoiser, sizes, sizes.size, "sigma-1.55")
    fit_with(Stopwatch, given, patches(section.folder, sizes, sizes.size), section.folder / "state")
    second = 1 / Stopwatch.paces[0]
    return {"s a step": second, "minutes for its 1,000 private steps": 1000 * second / 60}


# ------------------------------------------------------------------ resuming


@dataclass(frozen=True, kw_only=True)
class Ended(training.Loop):
    """Saves after every step, and is ended in one of them, before it is saved."""

    seconds_between_saves: float = -1.0
    in_step: ClassVar[int] = 0

    def _record(self, values: Any) -> None:
        super()._record(values)
        if values["step"] == self.in_step:
            raise InterruptedError


def resuming(section: Section) -> None:
    """Two runs left alone, and one that was ended and resumed: the same bytes?"""
    strict = "deterministic" in section.name
    torch.use_deterministic_algorithms(strict)
    for kind, settings in section.sizes.resumed.items():
        section.row(
            partial(resumed, section, settings),
            generator=kind, algorithms="deterministic" if strict else "torch's default",
        )  # fmt: skip


def resumed(section: Section, settings: config.Generator) -> dict[str, Any]:
    sizes, size = section.sizes, section.sizes.resumed_size
    few = replace(sizes, records=min(sizes.records, 1000))
    pairs = patches(section.folder, few, size)
    given = task(settings, few, size, "sigma-1")
    runs = {}
    for name, ends in {"first": [], "second": [], "resumed": [2]}.items():
        state = section.folder / f"{section.name}-{settings.kind}-{name}"
        for step in ends:
            Ended.in_step = step
            try:
                fit_with(Ended, given, pairs, state)
            except InterruptedError:
                assert (state / "checkpoint.safetensors").exists(), "nothing was saved"
        Ended.in_step = 0
        weights = fit_with(Ended, given, pairs, state).weights()
        whole = [tensor.cpu().numpy().tobytes() for _, tensor in sorted(weights.items())]
        runs[name] = b"".join(whole), (state / "checkpoint.safetensors").read_bytes()
    answer = {True: "yes", False: "no"}
    return {
        "two runs are equal": answer[runs["first"] == runs["second"]],
        "a resumed one is equal": answer[runs["first"] == runs["resumed"]],
    }


# ------------------------------------------------------------------ all of it


@dataclass(frozen=True)
class Plan:
    title: str
    measure: Callable[[Section], None]
    most: float
    """Seconds that it may take, of 480."""


SECTIONS = {
    "steps": Plan(
        "The private step against the plain one and its peers", step_of_every_method, 110
    ),
    "noise": Plan("The exact noise alone", parts_of_the_noise, 70),
    "modes": Plan("Ways to compute forward and backward pass", every_mode, 110),
    "together": Plan("Several trainings of the paper's WGAN at once", trainings_together, 100),
    "resume": Plan("Resuming", resuming, 45),
    "resume, deterministic": Plan("Resuming with deterministic algorithms", resuming, 45),
    "denoiser": Plan("A private step of the paper-sized denoiser", denoisers_step, 60),
}


def measure(name: str, asked: argparse.Namespace) -> None:
    """One section, in this process."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if asked.tiny:
        torch.set_num_threads(1)
    section = Section(
        name, tiny() if asked.tiny else paper(), Path(asked.folder), asked.deadline, asked.tiny,
        asked.fastdp,
    )  # fmt: skip
    try:
        SECTIONS[name].measure(section)
    except Exception as error:
        section.write({"failed": in_short(error)})
        raise


def run(name: str, asked: argparse.Namespace, folder: Path, end: float) -> str:
    """Run a section; how it ended, if not well."""
    if not asked.tiny or "deterministic" in name:
        return in_a_process(name, asked, folder, end)
    asked.folder, asked.deadline = folder, end  # a process each would take longer than the rest
    try:
        measure(name, asked)
    except Exception as error:
        return f"Ended with {in_short(error)}."
    return ""


def in_a_process(name: str, asked: argparse.Namespace, folder: Path, end: float) -> str:
    """The same in a process of its own, which is ended when its time is over."""
    deadline = min(end, time.time() + SECTIONS[name].most * asked.minutes / 8)
    if deadline - time.time() < 20:
        return "Not measured: out of time."
    command = [sys.executable, __file__, "--measure", name, "--folder", str(folder)]
    command += ["--deadline", str(deadline), "--fastdp", asked.fastdp]
    command += ["--tiny"] if asked.tiny else []
    environment = dict(os.environ)
    if "deterministic" in name:  # without which cuBLAS may not be
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # Rows look at the time before they begin, so that the last may run over a little.
    left = max(min(deadline + 20, end) - time.time(), 1)
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            process.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
            return "Ended here: out of time."
    return f"Ended with {process.returncode}." if process.returncode else ""


def rows_of(name: str, path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row.pop("section") == name]


def as_table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key="failed".__eq__)  # last
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(shown(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "/")


def heading() -> str:
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine()
    return (
        f"{datetime.date.today()}, {device}, {os.cpu_count()} CPU cores, torch "
        f"{torch.__version__}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="of all sections together")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--fastdp", default="", help="a checkout of fast-differential-privacy")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all, if none")
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked)
        return
    begun = time.time()
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else None
    text, found = [heading()], {"heading": heading(), "sections": {}}
    with tempfile.TemporaryDirectory() as place:
        for name in asked.sections or SECTIONS:
            start = time.time()
            problem = run(name, asked, Path(place), begun + asked.minutes * 60)
            rows = rows_of(name, Path(place, "rows.jsonl"))
            found["sections"][name] = {"rows": rows, "problem": problem}
            text += [f"## {SECTIONS[name].title}", as_table(rows) if rows else "No rows."]
            text += [problem] if problem else []
            tell(f"{name}: {time.time() - start:.0f} s {problem}")
            if out:  # after each section, in case the next is the last
                (out / "gpu.md").write_text("\n\n".join(text) + "\n")
                (out / "gpu.json").write_text(json.dumps(found, indent=1))
    print("\n\n".join([*text, f"{time.time() - begun:.0f} s in all."]), flush=True)


if __name__ == "__main__":
    main()
