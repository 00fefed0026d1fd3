"""The noise, digit by digit: its cipher, its rounding, and how far float64 may be trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mpmath import mp

from veil.privacy import chacha, noise
from veil.privacy.noise import Lattice, add_noise, rounded_normal
from veil.privacy.randomness import Secure, Seeded


def test_the_keystream_is_that_of_the_standard():
    """RFC 8439, section 2.3.2: key 0..31, nonce 000000090000004a00000000, block 1."""
    key, nonce = bytes(range(32)), bytes.fromhex("0000004a00000000")
    # There the counter has 32 bits, and the nonce's first word stands where its upper half is here.
    block = (9 << 56) + 1  # the word 0x09000000, little endian, above the counter 1
    words = chacha.by_torch(key, nonce, block, 1, "cpu").numpy().tobytes()
    assert words.hex().startswith(
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    )
    assert words.hex().endswith("b5129cd1de164eb9cbd083e8a2503c4e")


@pytest.mark.parametrize("first", [0, 5, 2**31 - 3, 2**32 - 9])
def test_openssl_and_torch_give_the_same_words(first):
    key, nonce = bytes(range(7, 39)), (2**40 + 3).to_bytes(8, "little")
    by_torch = chacha.by_torch(key, nonce, first, 9, "cpu").view(torch.int64).flatten()
    assert torch.equal(chacha.keystream(key, nonce, first, 72), by_torch)
    assert torch.equal(chacha.keystream(key, nonce, first, 13), by_torch[:13])


def test_noise_by_torchs_cipher_is_the_same_noise(monkeypatch):
    """As on a GPU, whose words come from there."""
    plain = rounded_normal(Seeded(3), 2.0**21, 1001, release=4)
    monkeypatch.setattr(
        chacha, "keystream",
        lambda key, nonce, first, count, device: (
            chacha.by_torch(key, nonce, first, -(-count // 8), device).view(torch.int64).flatten()[:count]
        ),
    )  # fmt: skip
    assert torch.equal(plain, rounded_normal(Seeded(3), 2.0**21, 1001, release=4))


def test_points_have_their_noise_whatever_stands_behind_them():
    long, short = (torch.zeros(n, dtype=torch.int64) for n in (100_001, 99))
    for points in (long, short):
        add_noise(points, Seeded(1), 2.0**20, 7)
    assert torch.equal(long[:99], short)


def exact(words: list[int], column: int) -> mp.mpf:
    """A deviate of the middle of what 52 bits say, to 60 digits."""
    with mp.workdps(60):
        first, second = (
            (mp.mpf((word % 2**64) >> 12) + mp.mpf("0.5")) / mp.mpf(2) ** 52 for word in words
        )
        wave = mp.sin if column else mp.cos
        return mp.sqrt(-2 * mp.log(first)) * wave(2 * mp.pi * second)


def test_float64_is_ten_times_better_than_it_is_trusted_to_be():
    """Ordinary words, and those at both ends of either number."""
    source, hard = Secure(), []
    words = [source.words(0, which, 0, 1000, torch.device("cpu")) for which in range(2)]
    ends = [0, 1, 2, 2**50, 2**51 - 1, 2**51, 2**51 + 1, 2**52 - 2, 2**52 - 1]
    for first in ends:
        for second in ends:
            hard.append((first << 12, second << 12))
    grid = torch.tensor([[a - 2**64 if a >= 2**63 else a for a in pair] for pair in hard])
    first, second = (torch.cat([w, grid[:, n]]) for n, w in enumerate(words))
    worst = 0.0
    for deviation in (1.0, 2.0**20):
        found, unsure = noise._in_float64(first, second, deviation)
        for row in range(len(first)):
            for column in range(2):
                value = exact([int(first[row]), int(second[row])], column) * deviation
                if not unsure[row, column]:
                    assert int(found[row, column]) == int(mp.floor(value + mp.mpf("0.5")))
                radius = abs(exact([int(first[row]), int(second[row])], 0)) + 1
                error = abs(mp.mpf(float64_of(first[row], second[row], column)) * deviation - value)
                worst = max(worst, float(error / (radius * deviation * noise.PRECISION)))
    assert worst < 0.1, worst


def float64_of(first, second, column) -> float:
    """The same arithmetic as the noise's, before it is rounded."""
    one, two = (((w >> 12) & (2**52 - 1)).double().add(0.5).mul(2.0**-52) for w in (first, second))
    angle = two * (2 * math.pi)
    return float((one.log() * -2).sqrt() * (angle.sin() if column else angle.cos()))


def test_refining_agrees_with_float64_where_that_is_sure():
    source = Secure()
    words = [source.words(0, which, 0, 400, torch.device("cpu")) for which in range(2)]
    found, unsure = noise._in_float64(words[0], words[1], 2.0**21)
    assert not unsure.any()
    for row in range(400):
        known = [int(stream[row]) for stream in words]
        for column in range(2):
            refined = noise._refined(source, 0, row, known, column, 2.0**21)
            assert refined == int(found[row, column])


def test_what_is_not_sure_is_found_out():
    """With so large a deviation that hardly anything is sure, and rounding still exact."""
    source, deviation = Secure(), 2.0**44
    words = [source.words(0, which, 0, 64, torch.device("cpu")) for which in range(2)]
    _, unsure = noise._in_float64(words[0], words[1], deviation)
    assert unsure.double().mean() > 0.1
    drawn = rounded_normal(source, deviation, 200, release=0)
    assert drawn.double().std().item() == pytest.approx(deviation, rel=0.3)
    again = rounded_normal(source, deviation, 200, release=0)
    assert torch.equal(drawn, again)


def test_a_lattice_rounds_to_its_points_and_towards_zero():
    lattice = Lattice(0.25)
    values = torch.tensor([0.1, -0.1, 0.3, -0.3, 0.13, 1.0])
    assert lattice.nearest(values).tolist() == [0, 0, 1, -1, 1, 4]
    assert lattice.towards_zero(values).tolist() == [0, 0, 1, -1, 0, 4]
    assert lattice.values(torch.tensor([3])).tolist() == [0.75]
    assert lattice.deviation(1.0) >= 4.0


def test_sums_of_rounded_vectors_are_exact_in_any_order():
    random = np.random.default_rng(0)
    vectors = torch.from_numpy(random.normal(size=(500, 7)))
    points = Lattice.of(3.0, 7).towards_zero(vectors)
    order = random.permutation(500)
    assert torch.equal(points.sum(0), points[order].sum(0))
    assert (Lattice.of(3.0, 7).values(points).norm(dim=1) <= vectors.norm(dim=1)).all()
