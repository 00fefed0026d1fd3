"""Clipped sums against one record at a time, in float64, for every layer and every way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from veil import config
from veil.generators import wgan
from veil.privacy import clipping

torch.manual_seed(0)
LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, 1, 1), (4, 9, 8)),
    "conv, strided": (nn.Conv2d(4, 6, 4, 2, 2, bias=False), (4, 9, 8)),
    "conv, stride divides no kernel": (nn.Conv2d(4, 6, 3, 2, 1), (4, 9, 8)),
    "conv, oblong": (nn.Conv2d(4, 6, (3, 2), (1, 2), (0, 1)), (4, 9, 8)),
    "conv, dilated": (nn.Conv2d(4, 6, 3, 1, 2, dilation=2), (4, 9, 8)),
    "conv, strided and dilated": (nn.Conv2d(4, 6, 2, 2, 1, dilation=2), (4, 9, 8)),
    "conv, input not used to its edge": (nn.Conv2d(4, 6, 2, 2), (4, 9, 7)),
    "conv to one place": (nn.Conv2d(4, 6, 4, 2), (4, 4, 4)),
    "conv of one pixel": (nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "conv, many channels": (nn.Conv2d(24, 20, 4, 2, 1), (24, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), (4, 5, 4)),
    "transposed, padded output": (nn.ConvTranspose2d(4, 6, 4, 2, 1, output_padding=1), (4, 2, 3)),
    "transposed, stride divides no kernel": (nn.ConvTranspose2d(4, 6, 3, 2, 1), (4, 5, 4)),
    "linear": (nn.Linear(7, 5), (7,)),
    "linear on tokens": (nn.Linear(7, 5), (11, 7)),
    "linear on few tokens of many channels": (nn.Linear(70, 50, bias=False), (3, 70)),
    "group norm": (nn.GroupNorm(2, 4), (4, 5, 6)),
    "group norm on tokens": (nn.GroupNorm(2, 4), (4, 6)),
    "layer norm": (nn.LayerNorm(7), (11, 7)),
    "layer norm over two axes": (nn.LayerNorm((5, 6)), (4, 5, 6)),
    "layer norm on rows": (nn.LayerNorm(7), (7,)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), (4, 5, 6)),
}  # fmt: skip


def naive(module, losses_of, inputs, clip_norm, rows=1):
    """One record at a time, as the definition reads."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for record in inputs.split(rows):
        gradients = torch.autograd.grad(losses_of(record).sum(), parameters)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = min(1.0, float(clip_norm / norm))
        total = [t + scale * g for t, g in zip(total, gradients, strict=True)]
    return total


def losses_of(module, rows=1):
    """Losses that weigh every output differently, per record of so many rows."""

    def losses(inputs):
        output = module(inputs).flatten(1)
        weights = torch.linspace(-1, 2, output.shape[1], dtype=output.dtype)
        return (output * weights + output.square()).sum(1).view(-1, rows).mean(1)

    return losses


def by_record(losses, inputs, rows=1):
    """Losses of a part of the records, each of so many rows."""
    return lambda part: losses(inputs[part.start * rows : part.stop * rows])


def check(module, inputs, clip_norm, rows=1):
    losses = losses_of(module, rows)
    found, values = clipping.clipped_sum(
        module, by_record(losses, inputs, rows), len(inputs) // rows, clip_norm, rows=rows
    )
    torch.testing.assert_close(values, losses(inputs).detach())
    for ours, theirs in zip(found, naive(module, losses, inputs, clip_norm, rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.fixture(params=["kept", "by Gram matrices", "directly", "grouped"], autouse=True)
def way(request, monkeypatch):
    """Every test runs once for each way to a record's norm."""
    if request.param != "kept":
        monkeypatch.setattr(clipping, "_worth_keeping", lambda *sizes: False)
        monkeypatch.setattr(clipping, "MANY_PLACES", 0 if request.param == "grouped" else 10**6)
        by_gram = request.param == "by Gram matrices"
        monkeypatch.setattr(clipping, "_cheaper", lambda gram, _: by_gram and gram < math.inf)
        monkeypatch.setattr(clipping, "CHUNK_BYTES", 20_000)  # several chunks
        monkeypatch.setattr(clipping, "AT_ONCE", 4)  # several passes


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("clip_norm", [0.01, 3.0, 1e6])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_exact(name, clip_norm, rows):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    check(layer.double(), torch.randn(6 * rows, *shape, dtype=torch.float64), clip_norm, rows)


SETTINGS = config.WganGenerator(kind="wgan", critic_width=4)


def critic(size=16):
    torch.manual_seed(0)
    return wgan.build_critic(SETTINGS, size).double()


def mixed():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1), nn.GroupNorm(2, 6), nn.SiLU(),
        nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.InstanceNorm2d(4, affine=True),
        nn.Conv2d(4, 4, (3, 2), (1, 2), (0, 1)), nn.LeakyReLU(0.2), nn.Flatten(2),
        nn.LayerNorm(14 * 9), nn.Linear(14 * 9, 7), nn.Tanh(), nn.Flatten(), nn.Linear(28, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("build", [critic, mixed])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.01, 0.3, 1e6])
def test_networks_are_exact(build, rows, clip_norm):
    check(build(), torch.randn(4 * rows, 2, 16, 16, dtype=torch.float64), clip_norm, rows)


def test_channels_last_changes_nothing():
    inputs = torch.randn(6, 2, 16, 16, dtype=torch.float64)

    def clipped(memory_format):
        network = mixed().to(memory_format=memory_format)
        losses, given = losses_of(network), inputs.contiguous(memory_format=memory_format)
        return clipping.clipped_sum(network, by_record(losses, given), 6, 0.3)[0]

    # Not against `naive`: torch 2.13's instance norm has wrong gradients for one record in
    # channels_last.
    expected = clipped(torch.contiguous_format)
    for ours, theirs in zip(clipped(torch.channels_last), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_parameters_are_left_out():
    network = mixed()
    for layer in list(network)[:4]:
        layer.requires_grad_(False)
    network[4].weight.requires_grad_(False)
    check(network, torch.randn(5, 2, 16, 16, dtype=torch.float64), 0.3)


def test_a_denoiser_of_diffusers_is_exact():
    """GroupNorm, attention and time embedding included, with another time for each record."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    network = diffusers.UNet2DModel(
        sample_size=16, in_channels=2, out_channels=2, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).double()  # fmt: skip
    images, times = torch.randn(3, 2, 16, 16).double(), torch.tensor([3, 500, 900])

    def losses(chosen):
        noise = network(images[chosen], times[chosen]).sample
        return (noise - images[chosen]).square().mean((1, 2, 3))

    found, _ = clipping.clipped_sum(network, lambda part: losses([0, 1, 2][part]), 3, 0.05)
    expected = naive(network, lambda record: losses(record.tolist()), torch.arange(3), 0.05)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_removing_a_record_moves_the_sum_by_at_most_the_clip_norm():
    network, inputs = critic(), 40 * torch.randn(6, 2, 16, 16, dtype=torch.float64)

    def total(records):
        losses = losses_of(network)
        sums, _ = clipping.clipped_sum(network, by_record(losses, records), len(records), 0.05)
        return torch.cat([part.flatten() for part in sums])

    for gone in range(6):
        rest = torch.cat([inputs[:gone], inputs[gone + 1 :]])
        assert (total(inputs) - total(rest)).norm() <= 0.05


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_is_no_number_counts_as_zero(value):
    network, inputs = mixed(), torch.randn(5, 2, 16, 16, dtype=torch.float64)
    losses = losses_of(network)
    good, _ = clipping.clipped_sum(network, by_record(losses, inputs), 4, 0.3)
    bad = inputs.clone()
    bad[4, 0, 3, 3] = value
    found, _ = clipping.clipped_sum(network, by_record(losses, bad), 5, 0.3)
    for ours, theirs in zip(found, good, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_groups_are_clipped_as_one():
    """A group's parts add up; its norm is that of the sum; groups may differ in size."""
    network, inputs = mixed(), torch.randn(9, 2, 16, 16, dtype=torch.float64)
    losses = losses_of(network)
    groups = [inputs[:1], inputs[1:5], inputs[5:]]
    found, values = clipping.clipped_sum_of_groups(
        network, ([lambda p=part: losses(p).sum() for part in g.split(2)] for g in groups), 0.3
    )
    expected = [torch.zeros_like(p) for p in network.parameters()]
    for group in groups:
        one = naive(network, lambda part: losses(part).sum(), group, 0.3, len(group))
        expected = [a + b for a, b in zip(expected, one, strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
    assert values.tolist() == pytest.approx([losses(g).sum().item() for g in groups])


def test_no_records_and_no_groups_give_zeros():
    network = critic()
    for sums, values in (
        clipping.clipped_sum(network, lambda part: 1 / 0, 0, 0.3),
        clipping.clipped_sum_of_groups(network, [], 0.3),
    ):
        assert all((part == 0).all() for part in sums)
        assert len(values) == 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.MultiheadAttention(2, 1),
        nn.PReLU(),
    ],
)
def test_layers_that_cannot_be_clipped_are_refused_by_name(layer):
    network = nn.Sequential(nn.Flatten(2), layer)
    with pytest.raises(TypeError, match=rf"layer '1' \({type(layer).__name__}\).*allowed are Lin"):
        clipping.clipped_sum(network, lambda part: network(torch.zeros(2, 2, 8)), 2, 1.0)


def test_a_layer_used_twice_is_refused():
    layer = nn.Linear(3, 3)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    with pytest.raises(TypeError, match="layer '0' is used twice"):
        clipping.clipped_sum(network, lambda part: network(torch.ones(2, 3)).sum(1), 2, 1.0)


def test_layers_that_share_a_parameter_are_refused():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    with pytest.raises(TypeError, match="layer '0' is used twice or shares a parameter"):
        clipping.clipped_sum(network, lambda part: network(torch.ones(2, 3)).sum(1), 2, 1.0)


@pytest.mark.parametrize("offset", [0.0, 300.0, 3000.0, 1e5])
def test_norms_that_cancel_in_float32_are_never_too_small(offset, monkeypatch):
    """Four tokens whose Gram matrices are nearly constant: what is left is rounding."""
    monkeypatch.setattr(clipping, "_cheaper", lambda gram, direct: True)
    monkeypatch.setattr(clipping, "_worth_keeping", lambda size, replaced: False)
    layer = nn.Linear(64, 64, bias=False)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        tokens = offset + torch.randn(1, 4, 64, generator=random)
        pull = torch.randn(1, 4, 64, generator=random)
        pull -= pull.mean(1, keepdim=True)
        total, _ = clipping.clipped_sum(
            layer, lambda part, t=tokens, p=pull: (layer(t[part]) * p).flatten(1).sum(1), 1, 1.0
        )
        assert 0 < total[0].norm().item() <= 1 + 1e-3
        assert offset or total[0].norm().item() > 0.99


@pytest.mark.parametrize("grouped", [False, True])
def test_sums_of_bfloat16_weights_gather_in_float32(grouped):
    """In bfloat16, one record more than 512 moves a sum by 4 or by nothing."""
    layer, ones = nn.Linear(1, 1, bias=False).bfloat16(), torch.ones(600, 1).bfloat16()

    def total(records):
        if grouped:
            groups = [[lambda: layer(ones[:1]).sum()] for _ in range(records)]
            return clipping.clipped_sum_of_groups(layer, groups, 1.0)[0][0].item()
        losses = lambda part: layer(ones[part]).sum(1)  # noqa: E731
        return clipping.clipped_sum(layer, losses, records, 1.0)[0][0].item()

    for records in (513, 514, 515):
        assert total(records + 1) - total(records) == pytest.approx(1, abs=1e-3)


def test_norms_and_sums_are_made_without_tf32(monkeypatch):
    seen, place = [], torch.backends.cuda.matmul
    before, place.allow_tf32 = place.allow_tf32, True
    for name in ("enter", "weighted_sums"):
        plain = getattr(clipping._Book, name)

        def watched(*given, plain=plain):
            seen.append(place.allow_tf32 or torch.backends.cudnn.allow_tf32)
            return plain(*given)

        monkeypatch.setattr(clipping._Book, name, watched)
    layer = nn.Linear(2, 1)
    clipping.clipped_sum(layer, lambda part: layer(torch.ones(2, 2)[part]).sum(1), 2, 1.0)
    assert seen == [False, False]
    assert place.allow_tf32
    place.allow_tf32 = before


def test_parameters_used_behind_their_layers_back_are_refused():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"parameter '1\.weight' is not used"):
        clipping.clipped_sum(
            network, lambda part: (network[0](torch.ones(2, 3)) @ network[1].weight).sum(1), 2, 1.0
        )


def test_another_number_of_rows_is_refused():
    network = nn.Linear(3, 1)
    with pytest.raises(TypeError, match="given 6 rows; allowed are 2 records"):
        clipping.clipped_sum(
            network, lambda part: network(torch.ones(6, 3)).view(2, 3).sum(1), 2, 1.0
        )
