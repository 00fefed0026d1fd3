"""A private step by each method, on the same networks and records: shared by the benchmarks.

A method takes a case and a noise multiplier and gives a step, which hands out the gradient that its
optimiser saw: `METHODS`. Cases are made on the CPU; `Case.to` takes one to a GPU.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from veil import config
from veil.generators import wgan
from veil.privacy.accounting import Charge
from veil.privacy.mechanism import SLACK, Mechanism
from veil.privacy.randomness import Seeded

CLIP, SIGMA, RATE = 1.0, 1.0, 5e-5
NO_NOISE = 1e-300  # a noise multiplier so small that every deviate is rounded to 0
BEFORE: Path | None = None
"""A checkout of Veil to compare with, for `veil_before`."""
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

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    def to(self, device: torch.device) -> Case:
        """The same on another device."""
        inputs = tuple(x.to(device) for x in self.inputs)
        return replace(self, module=self.module.to(device), inputs=inputs)

    def double(self) -> Case:
        """The same in float64."""
        inputs = tuple(x.double() if x.is_floating_point() else x for x in self.inputs)
        return replace(self, module=self.module.double(), inputs=inputs)

    def without(self, record: int) -> Case:
        """The same with one record less."""
        kept = torch.arange(self.records, device=self.device) != record
        return replace(self, inputs=tuple(x[kept] for x in self.inputs))


def critic(width: int, batch: int, size: int = 96) -> Case:
    """The paper's critic on as many real as fake pairs of size x size."""
    torch.manual_seed(0)
    module = wgan.build_critic(config.WganGenerator(kind="wgan", critic_width=width), size)
    wgan.initialise(module, torch.Generator().manual_seed(1))
    records = torch.rand(2 * batch, 2, size, size)
    signs = torch.cat([-torch.ones(batch), torch.ones(batch)])

    def losses(module: nn.Module, records: Tensor, signs: Tensor) -> Tensor:
        return signs * wgan.mean_score(module(records))

    return Case(module, (records, signs), losses)


def denoiser(batch: int, size: int = 96, channels: tuple[int, ...] = (32, 64, 64)) -> Case:
    """A U-Net of diffusers with group norm, attention and a time embedding."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    module = UNet2DModel(
        sample_size=size, in_channels=2, out_channels=2, block_out_channels=channels,
        layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    records, noise = torch.rand(batch, 2, size, size), torch.randn(batch, 2, size, size)

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
    module = case.module.to(memory_format=torch.channels_last)
    return replace(case, module=module, inputs=inputs)


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
    """What runs: a draw, here of every record, and its one release with exact noise."""
    optimiser = torch.optim.RMSprop(case.module.parameters(), RATE)
    # Contributions are clipped to the clip norm less the slack: to what the peers clip to.
    mechanism = Mechanism(
        Charge(sampling_rate=1.0, noise_multiplier=sigma or NO_NOISE, draws=10**9),
        units=case.records, present=case.records, clip_norm=CLIP * (1 + SLACK),
        identities=np.arange(case.records, dtype=np.uint64), sampler=Seeded(1), noise=Seeded(2),
    )  # fmt: skip

    def step() -> list[Tensor]:
        batch = mechanism.draw()
        sums, _ = batch.release(case.module, partial(case, case.module), len(batch))
        for parameter, total in zip(case.module.parameters(), sums, strict=True):
            parameter.grad = total
        return finish(case.module, optimiser)

    return step


def veil_channels_last(case: Case, sigma: float) -> Step:
    return veil(channels_last(case), sigma)


def veil_before(case: Case, sigma: float) -> Step:
    """As the library of `BEFORE` did it: a sum, and noise in floating point."""
    assert BEFORE is not None, "no checkout was given"
    clipping, randomness = modules_of(BEFORE, "veil.privacy.clipping", "veil.privacy.randomness")
    parameters = list(case.module.parameters())
    optimiser, noise = torch.optim.RMSprop(parameters, RATE), randomness.Seeded(1)

    def step() -> list[Tensor]:
        sums, _ = clipping.clipped_sum(case.module, partial(case, case.module), case.records, CLIP)
        for parameter, total in zip(parameters, sums, strict=True):
            if sigma:
                drawn = noise.normal(total.numel()).view(total.shape)
                total = total + sigma * CLIP * drawn.to(total.device)
            parameter.grad = total
        return finish(case.module, optimiser)

    return step


def modules_of(checkout: Path, *names: str) -> list[Any]:
    """Modules of another checkout's library, beside those of ours with the same names."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if of_library(name)}
    sys.path.insert(0, str(checkout / "workflow/scripts"))
    try:
        return [import_module(name) for name in names]
    finally:
        sys.path.pop(0)
        for name in filter(of_library, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(ours)


def of_library(name: str) -> bool:
    return name.split(".")[0] == "veil"


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
    optimiser = torch.optim.RMSprop(parameters.values(), RATE)

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
            if sigma:  # in float32, as people do it: quick, and not private in the low bits
                total = total + sigma * CLIP * torch.randn_like(total)
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
    "Veil before": veil_before,
    "fast-differential-privacy": fastdp,
    "Opacus hooks": opacus,
    "Opacus functorch": opacus_functorch,
    "Opacus ghost": opacus_ghost,
    "torch.func vmap": vmap,
}
