"""Clipped sums of per-record gradients at little more than a plain step's cost (floor 2).

One forward and one backward pass. A tap behind every layer sees its output's gradient pass by
("book-keeping", Bu et al. 2023) and gets each record's gradient norm in whichever way is cheaper:
from the record's own gradient, which is kept if it takes little room, or from two Gram matrices
without forming it ("ghost norm", Goodfellow 2015; Li et al. 2022). Then follows one weighted sum.
No second backward pass, and no plain weight gradient is ever computed.

A convolution's record gradients are a few matrix products, one for each shift of its kernel, or
one grouped convolution; nothing is unfolded into columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

KEPT = 2  # record gradients may take so many times the room of what they let go
MANY_PLACES = 400  # of an output, from which on a grouped convolution beats shifted products
AT_ONCE, AT_ONCE_ON_GPU = 32, 512  # rows that go through the network together, at most
FEW = 8  # rows, below which a batch is not halved
CHUNK_BYTES = 8 * 2**20  # what is worked on at a time
ALLOWED = (
    "Linear, Conv2d and ConvTranspose2d (one group, zero padding given in numbers), GroupNorm, "
    "LayerNorm, InstanceNorm2d without running statistics, and layers without parameters that "
    "keep records apart"
)

Matrix = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
Norm = nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d


Losses = Callable[[slice], Tensor]


def clipped_sum(
    module: nn.Module, losses: Losses, records: int, clip_norm: float, *, rows: int = 1
) -> tuple[list[Tensor], Tensor]:
    """Sum over records of each record's gradient, scaled to at most `clip_norm`.

    `losses(part)` runs `module` once on the rows of the records in `part`, a record's `rows` rows
    one after another, and returns one loss a record. Records go through a few at a time, which
    changes the sum by rounding alone and needs less memory than a plain step on all of them.
    Returns the sums, in the order of the parameters that require gradients, and all losses
    (records,). TypeError names a layer that is not supported, that is used twice, or whose
    parameters are used without it.

    Privacy: one record moves the sums by at most `clip_norm` in joint L2 norm (add or remove one
    record), but for the rounding of float32, which `mechanism.SLACK` takes up. A record whose
    gradient is not finite counts as zero, so that it can neither break the bound nor the model.
    What would void this: a layer in which one record's output depends on another record, such as
    batch norm.
    """
    check_supported(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    sums = {id(p): _zeros(p) for p in parameters}
    on_cpu = next(module.parameters()).device.type == "cpu"
    # On a CPU halves are as quick as the whole, and need half the memory.
    most = min(max(records * rows // 2, FEW), AT_ONCE) if on_cpu else AT_ONCE_ON_GPU
    step = max(most // rows, 1)
    values = []
    for start in range(0, records, step):
        part = slice(start, min(start + step, records))
        book = _Book(part.stop - part.start, rows)
        values.append(_backward(module, partial(losses, part), book))
        _refuse_unused(module, sums.keys() - book.entered())
        weights = _clip_weights(book.squares.sqrt(), clip_norm)
        with _full_precision():
            for parameter, total in book.weighted_sums(weights):
                sums[id(parameter)] += total
    return list(sums.values()), torch.cat(values) if values else torch.empty(0)


def clipped_sum_of_groups(
    module: nn.Module, groups: Iterable[Iterable[Callable[[], Tensor]]], clip_norm: float
) -> tuple[list[Tensor], Tensor]:
    """The same with groups of records (patients) as the unit.

    A group comes as the losses of its parts, each a function that returns a scalar; their
    gradients add up to the group's, which is clipped as one. One group's gradient and the sum
    are held, never all. Returns the sums and one loss a group (groups,).

    Privacy: one group moves the sums by at most `clip_norm`, however many records it has.
    """
    _refuse_mixing(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    sums = [_zeros(p) for p in parameters]
    values = []
    for parts in groups:
        total = [_zeros(p) for p in parameters]
        value = torch.zeros((), device=parameters[0].device)
        for part in parts:
            with _pass_precision():
                loss = part()
                gradients = torch.autograd.grad(loss, parameters)
            value = value + loss.detach()
            for held, gradient in zip(total, gradients, strict=True):
                held += gradient
        values.append(value)
        norm = torch.stack([torch.linalg.vector_norm(part.double()) for part in total]).norm()
        weight = float(_clip_weights(norm, clip_norm))
        if weight:
            torch._foreach_add_(sums, total, alpha=weight)
    return sums, torch.stack(values) if values else torch.empty(0)


def clipped_vectors(vectors: Tensor, clip_norm: float) -> Tensor:
    """Vectors (units, n), each scaled to at most `clip_norm`, in float64.

    Privacy: one unit moves their sum by at most `clip_norm` in L2 norm; a vector that is not
    finite becomes zero.
    """
    vectors = vectors.double()
    weights = _clip_weights(torch.linalg.vector_norm(vectors, dim=1), clip_norm)[:, None]
    return torch.where(weights > 0, weights * vectors, 0.0)


def _zeros(parameter: Tensor) -> Tensor:
    """Where sums gather: in bfloat16 a record more could move a large sum by many clip norms."""
    half = parameter.element_size() < 4
    return torch.zeros_like(parameter, dtype=torch.float32 if half else parameter.dtype)


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32: its errors would pass what a mechanism's slack leaves to norms and sums."""
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


# Forward and backward pass as well, until a GPU has shown what TF32 does there to a record in other
# company (benchmarks/gpu.py measures it).
_pass_precision = _full_precision


def _clip_weights(norms: Tensor, clip_norm: float) -> Tensor:
    """Factors that bring each norm to at most `clip_norm`; 0 for norms that are not finite."""
    factors = (clip_norm / (norms + 1e-12)).clamp(max=1)
    return torch.where(norms.isfinite(), factors, 0)


# ------------------------------------------------------------------ what is supported


def check_supported(module: nn.Module) -> None:
    """Raise TypeError if a layer's per-record gradients are not known here."""
    _refuse_mixing(module)
    for name, layer in module.named_modules():
        if _trainable(layer) and not _known(layer):
            raise TypeError(
                f"layer {name!r} ({type(layer).__name__}) cannot be clipped per record; "
                f"allowed are {ALLOWED}"
            )


def _refuse_mixing(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and (
            isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.track_running_stats
        ):
            raise TypeError(
                f"layer {name!r} ({type(layer).__name__}) mixes records; allowed are {ALLOWED}"
            )


def _refuse_unused(module: nn.Module, unused: Set[int]) -> None:
    for name, parameter in module.named_parameters():
        if id(parameter) in unused:
            raise TypeError(f"parameter {name!r} is not used through its layer's own call")


def _trainable(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters(recurse=False))


def _known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, Matrix | Norm)


# ------------------------------------------------------------------ one backward pass


class _Tap(torch.autograd.Function):
    """Lets a layer's output pass, and its gradient too, after showing it to `see`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, token: Tensor, see: Callable[[Tensor], None]) -> Tensor:
        ctx.see = see
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        with _full_precision():
            ctx.see(gradient)
        del ctx.see  # and with it the layer's input, which the graph would hold to the end
        return gradient, gradient.new_zeros(()), None


def _backward(module: nn.Module, losses: Callable[[], Tensor], book: _Book) -> Tensor:
    """Run `losses` with taps in place, and walk its graph back once."""
    # All taps hang on one token: asking for its gradient walks past each of them, and computes
    # no gradient of any weight.
    token = torch.zeros((), device=next(module.parameters()).device, requires_grad=True)

    def tap(name: str, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        see = partial(book.enter, name, layer, given[0].detach())
        tapped: Tensor = _Tap.apply(output, token, see)
        return tapped

    with _pass_precision():
        with ExitStack() as hooks:
            for name, layer in module.named_modules():
                if _trainable(layer):
                    hooks.enter_context(layer.register_forward_hook(partial(tap, name)))
            values = losses()
        torch.autograd.grad(values.sum(), [token])
    return values.detach()


@dataclass
class _Book:
    """What the taps saw: squared norms so far, and what the weighted sums will need."""

    records: int
    rows: int
    squares: Tensor = field(init=False)
    kept: list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    """(parameter, gradients (parts, records, n), from their sum (parts, n) to its shape)."""
    held: list[tuple[Matrix, Tensor, Tensor]] = field(default_factory=list)
    """(layer, input, output gradient) of layers whose records' gradients are too large to keep."""
    seen: set[int] = field(default_factory=set)
    """Identities of parameters."""

    def enter(self, name: str, layer: nn.Module, given: Tensor, gradient: Tensor) -> None:
        """Take note of one layer's input and output gradient."""
        own = {id(parameter) for parameter in layer.parameters(recurse=False)}
        if own & self.seen:
            raise TypeError(
                f"layer {name!r} is used twice or shares a parameter with another: its parts "
                "would be clipped apart"
            )
        first, self.seen = not self.seen, self.seen | own
        if len(given) != self.records * self.rows:
            raise TypeError(
                f"layer {name!r} was given {len(given)} rows; allowed are {self.records} records "
                f"of {self.rows} row(s)"
            )
        given, gradient = (t.float() if t.element_size() < 4 else t for t in (given, gradient))
        if first:
            self.squares = gradient.new_zeros(self.records)
        if isinstance(layer, Norm):
            self._enter_norm(layer, given, gradient)
            return
        assert isinstance(layer, Matrix)
        if layer.bias is not None and layer.bias.requires_grad:
            channels = -1 if isinstance(layer, nn.Linear) else 1
            self._keep(layer.bias, _over_places(gradient, channels)[None])
        if layer.weight.requires_grad:
            self._enter_weight(layer, given, gradient)

    def _enter_weight(self, layer: Matrix, given: Tensor, gradient: Tensor) -> None:
        product = _as_product(layer, given, gradient)
        size = self.records * product.size * given.element_size()
        replaced = (given.numel() + gradient.numel()) * given.element_size()
        if _worth_keeping(size, replaced):
            self._keep(layer.weight, product.every_gradient(), product.fold)
        else:
            self.squares += product.square_norms(self.rows)
            self.held.append((layer, given, gradient))

    def _enter_norm(self, layer: Norm, given: Tensor, gradient: Tensor) -> None:
        channels = 1
        if isinstance(layer, nn.GroupNorm):
            normal = functional.group_norm(given, layer.num_groups, eps=layer.eps)
        elif isinstance(layer, nn.InstanceNorm2d):
            normal = functional.instance_norm(given, eps=layer.eps)
        else:
            normal, channels = (
                functional.layer_norm(given, layer.normalized_shape, eps=layer.eps),
                0,
            )
        for parameter, value in ((layer.weight, gradient * normal), (layer.bias, gradient)):
            if parameter is not None and parameter.requires_grad:
                flat = (
                    _over_places(value, channels) if channels else _over_leading(value, parameter)
                )
                self._keep(parameter, flat.flatten(1)[None])

    def _keep(
        self,
        parameter: Tensor,
        gradients: Tensor,
        fold: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Note every row's gradient of one parameter, its parts apart (parts, rows, n)."""
        if self.rows > 1:
            parts, _, size = gradients.shape
            gradients = gradients.view(parts, self.records, self.rows, size).sum(2)
        self.squares += _square_norms(gradients)
        self.kept.append((parameter, gradients, fold or partial(_like, parameter.shape)))

    def entered(self) -> set[int]:
        """Identities of the parameters of which a gradient was seen."""
        return {id(each[0]) for each in self.kept} | {id(layer.weight) for layer, *_ in self.held}

    def weighted_sums(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its gradient summed over records with these weights."""
        # 0 times NaN is NaN, so a discarded record must go; with none discarded, no copy.
        live = weights > 0
        every = bool(live.all())
        for parameter, gradients, fold in self.kept:
            total = weights @ gradients if every else weights[live] @ gradients[:, live]
            yield parameter, fold(total)
        rows = weights.repeat_interleave(self.rows)
        live = live.repeat_interleave(self.rows)
        for layer, given, gradient in self.held:
            if not every:
                given, gradient = given[live], gradient[live]
            scale = rows if every else rows[live]
            scaled = gradient * scale.view(-1, *[1] * (gradient.dim() - 1))
            yield layer.weight, _plain_gradient(layer, given, scaled)


def _like(shape: torch.Size, flat: Tensor) -> Tensor:
    return flat.view(shape)


def _square_norms(gradients: Tensor) -> Tensor:
    """(parts, records, n) to (records,)."""
    return torch.linalg.vector_norm(gradients, dim=2).square().sum(0)


def _over_places(value: Tensor, channels: int) -> Tensor:
    """(N, ...) summed over all axes but the first and that of the channels."""
    axes = [axis for axis in range(1, value.dim()) if axis != channels % value.dim()]
    return value.sum(axes) if axes else value


def _over_leading(value: Tensor, parameter: Tensor) -> Tensor:
    """(N, ..., *shape of the parameter) summed over the axes in between."""
    axes = list(range(1, value.dim() - parameter.dim()))
    return value.sum(axes) if axes else value


def _plain_gradient(layer: Matrix, given: Tensor, gradient: Tensor) -> Tensor:
    """The weight's gradient summed over records, as a plain backward pass has it."""
    if isinstance(layer, nn.Linear):
        return gradient.flatten(0, -2).T @ given.flatten(0, -2)
    if isinstance(layer, nn.ConvTranspose2d):  # a convolution with its two ends exchanged
        given, gradient = gradient, given
    return conv2d_weight(
        given, list(layer.weight.shape), gradient, layer.stride, layer.padding, layer.dilation
    )


# ------------------------------------------------------------------ layers as matrix products

# Choices go by counting, not by timing, so that a run repeats to the bit.


def _worth_keeping(size: int, replaced: int) -> bool:
    """Whether record gradients of `size` bytes are kept in place of input and output gradient."""
    return size <= KEPT * replaced


def _cheaper(gram: float, direct: float) -> bool:
    """Whether norms come from Gram matrices, given the multiplications of the two ways."""
    return gram < direct


class _Product:
    """A linear layer's weight gradient as a matrix product, for each row n:

    gradient[n] = places[n].T @ pixels[n], which is (O, C).
    """

    shifts: Sequence[int] = (0,)
    """Where in a row's pixels the factor of each part of the gradient begins."""
    grouped = False
    """Whether rows are groups of one convolution, not matrix products."""

    def __init__(self, layer: Matrix, given: Tensor, gradient: Tensor):
        self.shape = layer.weight.shape
        self.given, self.gradient = given, gradient
        self.size = self.shape.numel()

    def matrices(self, part: slice) -> tuple[Tensor, Tensor]:
        """Pixels (n, P, C) and places (n, L, O)."""
        given, gradient = self.given[part], self.gradient[part]
        rows = len(given)
        return given.reshape(rows, -1, given.shape[-1]), gradient.reshape(
            rows, -1, gradient.shape[-1]
        )

    def counts(self) -> tuple[int, int]:
        """(P, L)"""
        pixels = self.given[0].numel() // self.given.shape[-1]
        return pixels, pixels

    def every_gradient(self) -> Tensor:
        """`gradients` of all rows, made of a few at a time."""
        row = (self.given[0].numel() + self.gradient[0].numel()) * self.given.element_size()
        step, rows = max(CHUNK_BYTES // row, 1), len(self.given)
        if step >= rows:
            return self.gradients(slice(None))
        parts = 1 if self.grouped else len(self.shifts)
        found = self.given.new_empty(parts, rows, self.size // parts)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            found[:, part] = self.gradients(part)
        return found

    def gradients(self, part: slice) -> Tensor:
        """Some rows' gradients, their parts apart (shifts, n, O * C)."""
        pixels, places = self.matrices(part)
        rows, length, outer = places.shape
        found = pixels.new_empty(len(self.shifts), rows, outer, pixels.shape[2])
        for each, shift in zip(found, self.shifts, strict=True):
            torch.bmm(places.transpose(1, 2), pixels[:, shift : shift + length], out=each)
        return found.flatten(2)

    def fold(self, flat: Tensor) -> Tensor:
        """From (shifts, O * C) to the weight's shape."""
        return flat.view(self.shape)

    def multiplications(self, rows: int) -> tuple[float, float]:
        """Of one record's norm from Gram matrices, and from its gradient."""
        pixels, length = self.counts()
        outer, parts = self.shape[0], len(self.shifts)
        channels = self.size // (outer * parts)
        gram = (rows * pixels) ** 2 * channels + (rows * length) ** 2 * (outer + parts)
        return gram, rows * length * self.size

    def square_norms(self, rows: int) -> Tensor:
        """Squared norm of each record's gradient, its rows together: (N / rows,)."""
        by_gram = _cheaper(*self.multiplications(rows))
        numbers = 2 * (rows * self.counts()[0]) ** 2 if by_gram else rows * self.size
        step = max(CHUNK_BYTES // (numbers * self.given.element_size()), 1) * rows
        norms = self._by_gram if by_gram else self._directly
        starts = range(0, len(self.given), step)
        return torch.cat([norms(slice(start, start + step), rows) for start in starts])

    def _directly(self, part: slice, rows: int) -> Tensor:
        found = self.gradients(part)
        return _square_norms(found if rows == 1 else found.unflatten(1, (-1, rows)).sum(2))

    def _by_gram(self, part: slice, rows: int) -> Tensor:
        """Inner products of patches are sums of inner products of pixels, shifted."""
        near, far = self.matrices(part)
        pixels, length = near.shape[1], far.shape[1]
        near, far = (t.reshape(-1, rows * t.shape[1], t.shape[2]) for t in (near, far))
        inner = (near @ near.transpose(1, 2)).view(-1, rows, pixels, rows, pixels)
        shifted = (inner[:, :, s : s + length, :, s : s + length] for s in self.shifts)
        patches: Tensor = reduce(torch.add, shifted)
        outputs = (far @ far.transpose(1, 2)).view(-1, rows, length, rows, length)
        found = (patches * outputs).sum((1, 2, 3, 4))
        # Where products cancel, rounding may hide most of a norm: what it can hide is added.
        sizes = [
            product.flatten(1, 2).flatten(2).diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
            for product in (patches, outputs)
        ]
        hidden = (sizes[0] * sizes[1]).sum(1).square() * torch.finfo(found.dtype).eps
        return found.clamp(min=0) + hidden


class _Convolution(_Product):
    """A convolution: one matrix product for each shift s of its kernel, without unfolding.

    gradient[n, s] = places[n].T @ pixels[n, s : s + L]

    Blocks of stride x stride pixels become channels, which leaves stride 1. Rows of the gradient
    are padded to the width of the padded input, so that each shift of the kernel is one slice of
    the flattened input. Where there are many places, or the stride does not divide the kernel,
    rows become groups of one grouped convolution instead.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, given: Tensor, gradient: Tensor):
        if isinstance(layer, nn.ConvTranspose2d):  # a convolution with its two ends exchanged
            given, gradient = gradient, given
        super().__init__(layer, given, gradient)
        self.layer = layer
        (down, across), (tall, wide) = layer.stride, layer.kernel_size
        plain = max(layer.stride) == 1
        self.shiftable = plain or (
            max(layer.dilation) == 1 and tall % down == 0 and wide % across == 0
        )
        self.steps = (tall // down, wide // across)  # of the kernel, once blocks are channels
        high, broad = gradient.shape[2:]
        self.height = high + (self.steps[0] - 1) * layer.dilation[0]
        self.width = broad + (self.steps[1] - 1) * layer.dilation[1]
        self.shifts = [
            a * layer.dilation[0] * self.width + b * layer.dilation[1]
            for a in range(self.steps[0])
            for b in range(self.steps[1])
        ]
        self.grouped = not self.shiftable or high * broad >= MANY_PLACES

    def counts(self) -> tuple[int, int]:
        high, broad = self.gradient.shape[2:]
        return self.height * self.width, (high - 1) * self.width + broad

    def multiplications(self, rows: int) -> tuple[float, float]:
        gram, direct = super().multiplications(rows)
        return gram if self.shiftable else math.inf, direct

    def matrices(self, part: slice) -> tuple[Tensor, Tensor]:
        gradient = self.gradient[part]
        rows, outer, high, broad = gradient.shape
        places = gradient.new_zeros(rows, high, self.width, outer)
        places[:, :, :broad] = gradient.permute(0, 2, 3, 1)
        return self._blocks(self.given[part]), places.flatten(1, 2)[:, : self.counts()[1]]

    def gradients(self, part: slice) -> Tensor:
        if not self.grouped:
            return super().gradients(part)
        given, gradient, layer = self.given[part], self.gradient[part], self.layer
        outer, *rest = self.shape
        found = conv2d_weight(
            given.reshape(1, -1, *given.shape[2:]), [len(given) * outer, *rest],
            gradient.reshape(1, -1, *gradient.shape[2:]), layer.stride, layer.padding,
            layer.dilation, groups=len(given),
        )  # fmt: skip
        return found.view(1, len(given), -1)

    def fold(self, flat: Tensor) -> Tensor:
        if self.grouped:
            return super().fold(flat)
        split = flat.view(*self.steps, self.shape[0], *self.layer.stride, -1)
        return split.permute(2, 5, 0, 3, 1, 4).reshape(self.shape)

    def _blocks(self, given: Tensor) -> Tensor:
        """The padded input as (n, height * width, stride * stride * channels)."""
        layer = self.layer
        assert not isinstance(layer.padding, str)
        (down, across), (top, left) = layer.stride, layer.padding
        shape = (len(given), self.height * down, self.width * across, given.shape[1])
        padded = given.new_zeros(shape)
        rows, columns = (
            min(size, end - start)
            for size, end, start in zip(given.shape[2:], shape[1:3], (top, left), strict=True)
        )
        inside = given[:, :, :rows, :columns].permute(0, 2, 3, 1)
        padded[:, top : top + rows, left : left + columns] = inside
        if down == across == 1:
            return padded.flatten(1, 2)
        split = padded.view(len(given), self.height, down, self.width, across, -1)
        return split.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def _as_product(layer: Matrix, given: Tensor, gradient: Tensor) -> _Product:
    if isinstance(layer, nn.Linear):
        return _Product(layer, given, gradient)
    return _Convolution(layer, given, gradient)
