"""The private step against the plain one, beside every peer: time and memory, in one run.

    .venv/bin/python benchmarks/private_step.py [--rounds 3] [--fastdp CHECKOUT] [case ...]

A step is gradients of real and fake records (or of a denoiser's batch), clipped record by record,
noised, and given to RMSprop. Each method has a process of its own, where it takes turns with the
plain step, so that a machine that drifts slows both and no method meets another's leftovers; the
table shows ratios of medians. Memory is what one step needs above what stood before it. Each
method's gradient without noise is compared with ours. fast-differential-privacy is on no package
index: give its checkout.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from veil import config
from veil.generators import wgan
from veil.privacy import clipping
from veil.privacy.randomness import Seeded

CLIP, SIGMA, RATE = 1.0, 1.0, 5e-5
LIMIT = 20 * 2**30  # bytes a method may take
Step = Callable[[], list[Tensor]]
"""Takes a step and returns the gradient that the optimiser saw."""


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and one loss per record."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    losses: Callable[..., Tensor]
    """(module, *inputs) to (records,)"""

    def __call__(self, module: nn.Module, part: slice = slice(None)) -> Tensor:
        return self.losses(module, *(x[part] for x in self.inputs))

    @property
    def records(self) -> int:
        return len(self.inputs[0])


def critic(width: int, batch: int) -> Case:
    """The paper's critic on as many real as fake pairs of 96 x 96."""
    torch.manual_seed(0)
    module = wgan.build_critic(config.WganGenerator(kind="wgan", critic_width=width), 96)
    wgan.initialise(module, torch.Generator().manual_seed(1))
    records = torch.rand(2 * batch, 2, 96, 96)
    signs = torch.cat([-torch.ones(batch), torch.ones(batch)])

    def losses(module: nn.Module, records: Tensor, signs: Tensor) -> Tensor:
        return signs * wgan.mean_score(module(records))

    return Case(module, (records, signs), losses)


def denoiser(batch: int) -> Case:
    """A U-Net of diffusers with group norm, attention and a time embedding."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    module = UNet2DModel(
        sample_size=96, in_channels=2, out_channels=2, block_out_channels=(32, 64, 64),
        layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    records, noise = torch.rand(batch, 2, 96, 96), torch.randn(batch, 2, 96, 96)

    def losses(module: nn.Module, records: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        found = module(0.7 * records + 0.7 * noise, times).sample
        return (found - noise).square().mean((1, 2, 3))

    return Case(module, (records, noise, torch.randint(0, 1000, (batch,))), losses)


CASES = {
    "critic, width 16, batch 32": lambda: critic(16, 32),
    "critic, width 16, batch 128": lambda: critic(16, 128),
    "critic, width 96 (the paper's), batch 32": lambda: critic(96, 32),
    "critic, width 96 (the paper's), batch 128": lambda: critic(96, 128),
    "U-Net denoiser, batch 16": lambda: denoiser(16),
}


def finish(module: nn.Module, optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Step, clip the weights as a WGAN does, and hand out the gradient."""
    optimiser.step()
    gradients = [p.grad for p in module.parameters()]
    with torch.no_grad():
        torch._foreach_clamp_min_(list(module.parameters()), -0.5)
        torch._foreach_clamp_max_(list(module.parameters()), 0.5)
    return gradients


def channels_last(case: Case) -> Case:
    inputs = tuple(
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in case.inputs
    )
    return Case(case.module.to(memory_format=torch.channels_last), inputs, case.losses)


def plain(case: Case, sigma: float) -> Step:
    optimiser = torch.optim.RMSprop(case.module.parameters(), RATE)

    def step() -> list[Tensor]:
        optimiser.zero_grad(set_to_none=True)
        case(case.module).sum().backward()
        return finish(case.module, optimiser)

    return step


def plain_channels_last(case: Case, sigma: float) -> Step:
    return plain(channels_last(case), sigma)


def veil(case: Case, sigma: float) -> Step:
    parameters = list(case.module.parameters())
    optimiser, noise = torch.optim.RMSprop(parameters, RATE), Seeded(1)

    def step() -> list[Tensor]:
        sums, _ = clipping.clipped_sum(case.module, partial(case, case.module), case.records, CLIP)
        for parameter, total in zip(parameters, sums, strict=True):
            if sigma:
                total = total + sigma * CLIP * noise.normal(total.numel()).view(total.shape)
            parameter.grad = total
        return finish(case.module, optimiser)

    return step


def veil_channels_last(case: Case, sigma: float) -> Step:
    return veil(channels_last(case), sigma)


def opacus(case: Case, sigma: float, **how: bool) -> Step:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    module = GradSampleModule(case.module, loss_reduction="sum", **how)
    optimiser = DPOptimizer(
        torch.optim.RMSprop(module.parameters(), RATE), noise_multiplier=sigma,
        max_grad_norm=CLIP, expected_batch_size=1, loss_reduction="sum",
    )  # fmt: skip

    def step() -> list[Tensor]:
        optimiser.zero_grad()
        case(module).sum().backward()
        return finish(module, optimiser)

    return step


def opacus_functorch(case: Case, sigma: float) -> Step:
    return opacus(case, sigma, force_functorch=True)


def opacus_ghost(case: Case, sigma: float) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping

    module = GradSampleModuleFastGradientClipping(
        case.module, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimiser = DPOptimizerFastGradientClipping(
        torch.optim.RMSprop(module.parameters(), RATE), noise_multiplier=sigma,
        max_grad_norm=CLIP, expected_batch_size=1, loss_reduction="sum",
    )  # fmt: skip

    def step() -> list[Tensor]:
        optimiser.zero_grad()
        losses = case(module)
        losses.sum().backward(retain_graph=True)
        weights = module.get_clipping_coef()
        optimiser.zero_grad()
        module.disable_hooks()
        (weights * losses).sum().backward()
        module.enable_hooks()
        return finish(module, optimiser)

    return step


def vmap(case: Case, sigma: float) -> Step:
    parameters = dict(case.module.named_parameters())
    optimiser, noise = torch.optim.RMSprop(parameters.values(), RATE), Seeded(1)

    def loss(held: dict[str, Tensor], *one: Tensor) -> Tensor:
        def call(*given: Tensor) -> object:
            return torch.func.functional_call(case.module, held, given)

        return case.losses(call, *(x[None] for x in one))[0]

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(case.inputs)))

    def step() -> list[Tensor]:
        samples = gradients({k: p.detach() for k, p in parameters.items()}, *case.inputs)
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples.values()]).norm(dim=0)
        weights = (CLIP / (norms + 1e-6)).clamp(max=1)
        for name, parameter in parameters.items():
            total = torch.tensordot(weights, samples[name], 1)
            if sigma:
                total = total + sigma * CLIP * noise.normal(total.numel()).view(total.shape)
            parameter.grad = total
        return finish(case.module, optimiser)

    return step


def stand_in_for_transformers() -> None:
    """It imports classes of a large library, which these networks have none of."""
    for name in (
        "transformers", "transformers.pytorch_utils", "transformers.modeling_outputs",
        "transformers.utils", "transformers.models", "transformers.models.t5",
        "transformers.models.t5.modeling_t5", "transformers.models.opt",
        "transformers.models.opt.modeling_opt",
    ):  # fmt: skip
        stub = sys.modules[name] = types.ModuleType(name)
        stub.__path__ = []
        stub.__file__ = "none"
        stub.__getattr__ = lambda wanted: type(wanted, (), {"get_logger": logging.getLogger})
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, stub)


def fastdp(case: Case, sigma: float) -> Step:
    stand_in_for_transformers()
    from fastDP import PrivacyEngine

    optimiser = torch.optim.RMSprop(case.module.parameters(), RATE)
    engine = PrivacyEngine(
        case.module, batch_size=case.records, sample_size=100 * case.records, epochs=1,
        max_grad_norm=CLIP, noise_multiplier=sigma, clipping_fn="Abadi", clipping_mode="MixOpt",
        loss_reduction="sum", target_delta=1e-5,
    )  # fmt: skip
    engine.attach(optimiser)

    def step() -> list[Tensor]:
        optimiser.zero_grad(set_to_none=True)
        case(case.module).sum().backward()
        return finish(case.module, optimiser)

    return step


METHODS: dict[str, Callable[[Case, float], Step]] = {
    "plain": plain,
    "plain, channels_last": plain_channels_last,
    "**Veil**": veil,
    "**Veil**, channels_last": veil_channels_last,
    "fast-differential-privacy": fastdp,
    "Opacus hooks": opacus,
    "Opacus functorch": opacus_functorch,
    "Opacus ghost": opacus_ghost,
    "torch.func vmap": vmap,
}


# ------------------------------------------------------------------ measuring


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
    steps = {"plain": plain(CASES[case](), SIGMA), "method": METHODS[method](CASES[case](), SIGMA)}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + (rounds > 1)):
        for name, step in steps.items():
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
    needs = {name: apart("memory", case, name, options=options) for name in METHODS}
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all, if none is named")
    asked = parser.parse_args()
    if asked.fastdp:
        sys.path.append(asked.fastdp)
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
    options = ["--fastdp", asked.fastdp, "--threads", str(asked.threads)]
    for case in asked.cases or CASES:
        table(case, asked.rounds, options)


if __name__ == "__main__":
    main()
