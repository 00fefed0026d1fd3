"""Clipped, noised sums of per-record gradients at little more than a plain step's cost (floor 2).

One forward and one backward pass give every layer's input and output gradient ("book-keeping",
Bu et al. 2023). From these come each record's gradient norm, layer by layer, whichever way is
cheaper: from the record's own weight gradient, or from two Gram matrices without forming it
("ghost norm", Goodfellow 2015; Li et al. 2022). Then follows one weighted sum. No second
backward pass, and memory near the plain step's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

KEPT_BYTES = 48 * 2**20  # records' gradients of a layer up to this size are kept, not remade


Layer = nn.Conv2d | nn.Linear


@dataclass
class _Seen:
    """What one layer saw: its input and its output's gradient, records first."""

    layer: Layer
    given: Tensor
    gradient: Tensor


def clipped_sum(
    module: nn.Module, score: Callable[[Tensor], Tensor], batch: Tensor, clip_norm: float
) -> tuple[list[Tensor], Tensor]:
    """Sum over records of each record's gradient, scaled to at most `clip_norm`.

    `score` maps the module's output for `batch` (B, ...) to one number a record (B,). Returns
    the sums, in the order of `module.parameters()`, and the scores. The layers with parameters
    must be Conv2d or Linear, and nothing in the module may mix records.

    Privacy: one record moves the sums by at most `clip_norm` in joint L2 norm. A record whose
    gradient is not finite counts as zero, so that it can neither break the bound nor the model.
    What would void this: a layer in which one record's output depends on another record, such
    as batch norm.
    """
    check_supported(module)
    if not len(batch):
        return [torch.zeros_like(p) for p in module.parameters()], batch.new_zeros(0)
    seen, scores = _book_keep(module, score, batch)
    kept = [_kept_gradients(entry) for entry in seen]
    squares = [
        torch.linalg.vector_norm(gradients.flatten(1), dim=1).square()
        if gradients is not None
        else _square_norm(entry)
        for entry, gradients in zip(seen, kept, strict=True)
    ]
    norms = torch.stack(squares).sum(0).sqrt()
    # The epsilon keeps rounding from letting a clipped record exceed the bound.
    weights = torch.where(
        norms.isfinite(), (clip_norm / (norms * (1 + 1e-6) + 1e-12)).clamp(max=1), 0
    )
    sums: dict[Tensor, Tensor] = {}
    for entry, gradients in zip(seen, kept, strict=True):
        for parameter, total in _weighted_sum(entry, gradients, weights):
            sums[parameter] = sums[parameter] + total if parameter in sums else total
    return [sums[parameter] for parameter in module.parameters()], scores


def add_noise(sums: Iterable[Tensor], deviation: float, random: torch.Generator) -> list[Tensor]:
    """Add Gaussian noise of this standard deviation to each coordinate.

    Privacy: `deviation` is noise multiplier times clip norm. Noise is drawn on the CPU from
    the generator passed in; who knows its seed can subtract it.
    """
    return [
        total + deviation * torch.randn(total.shape, generator=random).to(total.device)
        for total in sums
    ]


def check_supported(module: nn.Module) -> None:
    """Raise TypeError if a layer has parameters whose per-record gradients are not known here."""
    for name, layer in module.named_modules():
        mixes = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        if mixes or (any(True for _ in layer.parameters(recurse=False)) and not plain):
            raise TypeError(
                f"layer {name!r} ({type(layer).__name__}) cannot be clipped per record; allowed "
                "are Linear and Conv2d (one group, zero padding) and layers without parameters "
                "that keep records apart"
            )


def _book_keep(
    module: nn.Module, score: Callable[[Tensor], Tensor], batch: Tensor
) -> tuple[list[_Seen], Tensor]:
    """One forward and one backward pass, keeping what each layer saw."""
    calls: list[tuple[Layer, Tensor, Tensor]] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, Layer)
        calls.append((layer, given[0].detach(), output))

    with ExitStack() as hooks:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                hooks.enter_context(layer.register_forward_hook(keep))
        scores = score(module(batch))
    gradients = torch.autograd.grad(scores.sum(), [output for _, _, output in calls])
    seen = [
        _Seen(layer=layer, given=given, gradient=gradient)
        for (layer, given, _), gradient in zip(calls, gradients, strict=True)
    ]
    layers = [entry.layer for entry in seen]
    if len(set(layers)) != len(layers):
        raise TypeError("a layer is used twice: its two parts would be clipped apart")
    return seen, scores.detach()


def _columns(entry: _Seen) -> tuple[Tensor, Tensor]:
    """A layer as one matrix product a record: inputs (B, I, L) and output gradients (B, O, L)."""
    layer, given, gradient = entry.layer, entry.given, entry.gradient
    if isinstance(layer, nn.Linear):
        # A record has one row, or several along the axes between first and last.
        records = len(given)
        flat = given.reshape(records, -1, given.shape[-1]).transpose(1, 2)
        return flat, gradient.reshape(records, -1, gradient.shape[-1]).transpose(1, 2)
    assert not isinstance(layer.padding, str)
    unfolded = functional.unfold(
        given,
        layer.kernel_size,
        layer.dilation,
        layer.padding,
        layer.stride,
    )
    return unfolded, gradient.flatten(2)


def _kept_gradients(entry: _Seen) -> Tensor | None:
    """Each record's weight gradient (B, O, I [+ 1]), bias last, if it is small enough to keep."""
    size = sum(parameter.numel() for parameter in entry.layer.parameters())
    if len(entry.given) * size * entry.given.element_size() > KEPT_BYTES:
        return None
    inputs, outputs = _columns(entry)
    weight = torch.bmm(outputs, inputs.transpose(1, 2))
    if entry.layer.bias is None:
        return weight
    return torch.cat([weight, outputs.sum(2, keepdim=True)], 2)


def _square_norm(entry: _Seen) -> Tensor:
    """Squared norm of each record's gradient (B,), record by record or by Gram matrices."""
    inputs, outputs = _columns(entry)
    (_, rows, places), columns = inputs.shape, outputs.shape[1]
    if places * (rows + columns) < rows * columns:
        gram = torch.bmm(inputs.transpose(1, 2), inputs)
        square = (gram * torch.bmm(outputs.transpose(1, 2), outputs)).sum((1, 2))
    else:
        parts = zip(outputs, inputs, strict=True)
        square = torch.stack([(out @ given.T).square().sum() for out, given in parts])
    if entry.layer.bias is not None:
        square = square + outputs.sum(2).square().sum(1)
    return square


def _weighted_sum(
    entry: _Seen, kept: Tensor | None, weights: Tensor
) -> Iterable[tuple[Tensor, Tensor]]:
    """The layer's parameters with their gradients summed over records with these weights."""
    layer = entry.layer
    # 0 times NaN is NaN, so a discarded record must go; with none discarded, no copy.
    discarded = bool((weights == 0).any())
    live: Tensor | slice = weights > 0 if discarded else slice(None)
    if kept is not None:
        total = (weights[live] @ kept[live].flatten(1)).view(kept.shape[1:])
        inputs = layer.weight[0].numel()
        yield layer.weight, total[:, :inputs].reshape(layer.weight.shape)
        if layer.bias is not None:
            yield layer.bias, total[:, inputs]
        return
    given = entry.given[live]
    scale = weights[live].view(-1, *[1] * (entry.gradient.dim() - 1))
    gradient = entry.gradient[live] * scale
    if isinstance(layer, nn.Conv2d):
        weight = conv2d_weight(
            given,
            layer.weight.shape,
            gradient,
            layer.stride,
            layer.padding,
            layer.dilation,
        )
        bias = gradient.sum((0, 2, 3))
    else:
        weight = gradient.flatten(0, -2).T @ given.flatten(0, -2)
        bias = gradient.flatten(0, -2).sum(0)
    yield layer.weight, weight
    if layer.bias is not None:
        yield layer.bias, bias
