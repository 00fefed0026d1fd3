"""How alike two sets of images are in radiomics features (floor 2).

The Fréchet radiomics distance (FRD; v0 of Osuala et al. 2024, v1 of Konz, Osuala et al. 2026): the
Fréchet distance between normal laws fitted to what radiologists' software measures, in place of
what a network for photographs sees.

- Features: 72 of those of pyradiomics, by its definitions and under its names, in 2-D on the
  image as it is: 14 of first order, 22 of the co-occurrence matrix (the ones v1 takes), 16 of run
  lengths, 16 of zones, 4 of neighbourhood differences; matrices over 4 directions at distance 1,
  symmetric, features averaged over directions. Left out of v1's: its filtered images (wavelets,
  Laplacians); Minimum, Maximum and Range, which are 0 and 255 once `patches` has scaled a patch;
  TotalEnergy, which is Energy where pixels have no spacing; and Coarseness, which pyradiomics
  sets to a million for a patch of one grey level, so that one such patch would drown all else.
- Region: the whole patch, as in FRD without masks; labels take no part.
- Grey levels: bins of 25 of the 256 values (pyradiomics' and v0's default), counted from the
  patch's darkest. Patches come scaled one by one, which stands for v1's standardisation; without
  a pixel size there is no resampling.
- Normalisation: as in v1, mean and deviation of the reference; v0 stretches both sets together
  to 0..7.457. So distances to two references have a scale each.
- A feature that does not vary in the reference is dropped (as in v1), and `space` names it.
- The value is the squared distance, as in v0; v1 publishes its logarithm. Emphases of large zones
  and long runs have heavy tails (patches with flat parts), and one of them can decide the value.

Features agree with pyradiomics 3.0.1. Distances compare with each other, and with a published FRD
only where features, bins and normalisation are these.

Privacy: a distance to real patches is an exact number about real patients, charged nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.special import entr

from veil.evaluation import similarity

BIN_WIDTH = 25
FEATURES = "pyradiomics-72"
"""Name of the feature space; to be changed with anything that moves its values."""
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
STEADY = 1e-9
"""A deviation below this share of the largest value is rounding."""

RUN = ("ShortRun", "LongRun", "Run", "RunLength")
ZONE = ("SmallArea", "LargeArea", "Zone", "SizeZone")
"""What pyradiomics calls a small one, a large one, one, and its size."""

Measured = dict[str, np.ndarray]
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each run or zone its image, its level and its number of pixels."""


def distance(synthetic: pd.DataFrame, reference: pd.DataFrame) -> float:
    """Squared FRD of two sets' `features`, in units of the reference's deviations."""
    kept = _varying(reference)
    mean, deviation = reference[kept].mean(), reference[kept].std(ddof=0)
    return similarity.frechet_distance(
        *(((rows[kept] - mean) / deviation).to_numpy() for rows in (synthetic, reference))
    )


def space(reference: pd.DataFrame) -> str:
    """Name of the feature space that distances to `reference` are in."""
    dropped = reference.columns.difference(_varying(reference), sort=False)
    return FEATURES + (f" without {', '.join(dropped)}" if len(dropped) else "")


def _varying(reference: pd.DataFrame) -> pd.Index:
    return reference.columns[reference.std(ddof=0) > STEADY * reference.abs().max()]


def features(images: np.ndarray) -> pd.DataFrame:
    """One row an image of uint8 (n, H, W), H and W at least 2; columns are `<class>_<Feature>`."""
    levels = (images // BIN_WIDTH).astype(np.int64)
    levels -= levels.min((1, 2), keepdims=True)  # 0 is the bin of the image's darkest pixel
    found = {
        "firstorder": _first_order(images.reshape(len(images), -1).astype(np.float64), levels),
        "glcm": _cooccurrence(levels),
        "glrlm": _runs(levels),
        "glszm": _zones(levels),
        "ngtdm": _neighbourhoods(levels),
    }
    columns = {f"{kind}_{name}": v for kind, part in found.items() for name, v in part.items()}
    return pd.DataFrame(columns)


def _first_order(values: np.ndarray, levels: np.ndarray) -> Measured:
    """Statistics of pixels (n, H W), kurtosis of a normal law being 3; 0 for moments of nothing."""
    low, p25, median, p75, high = np.percentile(values, (10, 25, 50, 75, 90), axis=1)
    mean = values.mean(1)
    centred = values - mean[:, None]
    variance, third, fourth = ((centred**power).mean(1) for power in (2, 3, 4))
    within = (values >= low[:, None]) & (values <= high[:, None])
    robust = np.where(within, values, np.nan)
    robust -= np.nanmean(robust, 1, keepdims=True)
    shares = _histograms(levels) / values.shape[1]
    return {
        "10Percentile": low,
        "90Percentile": high,
        "Energy": (values**2).sum(1),
        "Entropy": _bits(shares, 1),
        "InterquartileRange": p75 - p25,
        "Kurtosis": _ratio(fourth, variance**2),
        "MeanAbsoluteDeviation": np.abs(centred).mean(1),
        "Mean": mean,
        "Median": median,
        "RobustMeanAbsoluteDeviation": np.nanmean(np.abs(robust), 1),
        "RootMeanSquared": np.sqrt((values**2).mean(1)),
        "Skewness": _ratio(third, variance**1.5),
        "Uniformity": (shares**2).sum(1),
        "Variance": variance,
    }


def _cooccurrence(levels: np.ndarray) -> Measured:
    """Features of which levels lie beside which, from one symmetric matrix a direction."""
    shares = _pair_shares(levels)
    most = shares.shape[-1]
    grey = np.arange(1.0, most + 1)
    apart, both = np.abs(grey[:, None] - grey), grey[:, None] + grey
    margin = shares.sum(3)
    mean = margin @ grey
    variance = (margin * (grey - mean[..., None]) ** 2).sum(2)
    own, joint = _bits(margin, 2), _bits(shares, (2, 3))
    gaps = np.stack([shares[..., apart == gap].sum(2) for gap in range(most)], 2)
    sums = np.stack([shares[..., both == total].sum(2) for total in np.unique(both)], 2)
    gap = gaps @ np.arange(most)
    highest = 1 + levels.max((1, 2))[:, None, None, None]

    def expected(weights: np.ndarray) -> np.ndarray:
        return (shares * weights).sum((2, 3))

    centred = both - 2 * mean[..., None, None]
    found = {
        "Autocorrelation": expected(np.outer(grey, grey)),
        "ClusterProminence": expected(centred**4),
        "ClusterShade": expected(centred**3),
        "ClusterTendency": expected(centred**2),
        "Contrast": expected(apart**2),
        "Correlation": _ratio(expected(np.outer(grey, grey)) - mean**2, variance, empty=1.0),
        "DifferenceAverage": gap,
        "DifferenceEntropy": _bits(gaps, 2),
        "DifferenceVariance": (gaps * (np.arange(most) - gap[..., None]) ** 2).sum(2),
        "Id": expected(1 / (1 + apart)),
        "Idm": expected(1 / (1 + apart**2)),
        "Idmn": expected(1 / (1 + (apart / highest) ** 2)),
        "Idn": expected(1 / (1 + apart / highest)),
        "Imc1": _ratio(joint - 2 * own, own),
        "Imc2": np.sqrt(1 - np.exp(-2 * np.maximum(2 * own - joint, 0))),
        "InverseVariance": expected(_ratio(np.ones_like(apart), apart**2)),
        "JointAverage": mean,
        "JointEnergy": expected(shares),
        "JointEntropy": joint,
        "MaximumProbability": shares.max((2, 3)),
        "SumEntropy": _bits(sums, 2),
        "SumSquares": variance,
    }
    return {name: values.mean(1) for name, values in found.items()}


def _pair_shares(levels: np.ndarray) -> np.ndarray:
    """Share of pairs of neighbours with levels i and j, in either order, (n, 4, L, L)."""
    count, height, width = levels.shape
    most = int(levels.max()) + 1
    image = np.arange(count)[:, None, None] * most**2
    matrices = []
    for down, right in DIRECTIONS:
        first = levels[:, : height - down, max(-right, 0) : width - max(right, 0)]
        second = levels[:, down:, max(right, 0) : width + min(right, 0)]
        pairs = np.bincount((image + first * most + second).ravel(), minlength=count * most**2)
        matrix = pairs.reshape(count, most, most)
        matrices.append((matrix + matrix.transpose(0, 2, 1)) / (2 * first[0].size))
    return np.stack(matrices, 1)


def _runs(levels: np.ndarray) -> Measured:
    """Features of straight runs of one level, averaged over the directions."""
    parts = [_extents(levels, runs, RUN) for runs in _straight_runs(levels)]
    return {name: np.mean([part[name] for part in parts], 0) for name in parts[0]}


def _straight_runs(levels: np.ndarray) -> Iterator[Found]:
    """The runs of each direction."""
    count, height, width = levels.shape
    y, x = (place.ravel() for place in np.indices((height, width)))
    for down, right in DIRECTIONS:
        line, along = (right * y - down * x, y if down else x)
        order = np.lexsort((along, line))
        rows = levels.reshape(count, -1)[:, order]
        starts = np.ones(rows.shape, bool)
        starts[:, 1:] = (rows[:, 1:] != rows[:, :-1]) | np.diff(line[order]).astype(bool)
        places = np.flatnonzero(starts)
        yield places // (height * width), rows.ravel()[places], np.diff(places, append=rows.size)


def _zones(levels: np.ndarray) -> Measured:
    """Features of connected zones of one level, corners touching."""
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # images of the stack do not touch
    images, grey, sizes = [], [], []
    for level in range(int(levels.max()) + 1):
        zones, count = ndimage.label(levels == level, touching)
        flat = zones.ravel()
        image = np.zeros(count + 1, np.int64)
        image[flat] = np.arange(len(flat)) // levels[0].size
        images.append(image[1:])
        grey.append(np.full(count, level))
        sizes.append(np.bincount(flat, minlength=count + 1)[1:])
    found = np.concatenate(images), np.concatenate(grey), np.concatenate(sizes)
    return _extents(levels, found, ZONE)


def _extents(levels: np.ndarray, found: Found, names: tuple[str, str, str, str]) -> Measured:
    """The 16 features that runs and zones share."""
    image, grey, size = found
    small, large, one, extent = names
    count, pixels = len(levels), levels[0].size
    total = np.bincount(image, minlength=count)
    level, squared = grey + 1.0, size.astype(np.float64) ** 2

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.bincount(image, weights, count) / total

    def tally(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many there are of each image and key, and the image."""
        keys, many = np.unique(image * (key.max() + 1) + key, return_counts=True)
        return keys // (key.max() + 1), many

    def uneven(key: np.ndarray) -> np.ndarray:
        where, many = tally(key)
        return np.bincount(where, many.astype(np.float64) ** 2, count) / total

    by_level, by_size = uneven(grey), uneven(size)
    where, many = tally(grey * (pixels + 1) + size)
    return {
        f"{small}Emphasis": mean(1 / squared),
        f"{large}Emphasis": mean(squared),
        "GrayLevelNonUniformity": by_level,
        "GrayLevelNonUniformityNormalized": by_level / total,
        f"{extent}NonUniformity": by_size,
        f"{extent}NonUniformityNormalized": by_size / total,
        f"{one}Percentage": total / pixels,
        "GrayLevelVariance": mean((level - mean(level)[image]) ** 2),
        f"{one}Variance": mean((size - mean(size)[image]) ** 2),
        f"{one}Entropy": np.bincount(where, entr(many / total[where]), count) / np.log(2),
        f"LowGrayLevel{one}Emphasis": mean(1 / level**2),
        f"HighGrayLevel{one}Emphasis": mean(level**2),
        f"{small}LowGrayLevelEmphasis": mean(1 / (squared * level**2)),
        f"{small}HighGrayLevelEmphasis": mean(level**2 / squared),
        f"{large}LowGrayLevelEmphasis": mean(squared / level**2),
        f"{large}HighGrayLevelEmphasis": mean(squared * level**2),
    }


def _neighbourhoods(levels: np.ndarray) -> Measured:
    """Features of how far each pixel's level is from the mean of its up to 8 neighbours."""
    pixels = levels[0].size
    around = np.ones((1, 3, 3))
    around[0, 1, 1] = 0
    total = ndimage.correlate(levels.astype(np.float64), around, mode="constant")
    beside = ndimage.correlate(np.ones((1, *levels.shape[1:])), around, mode="constant")
    off = _histograms(levels, np.abs(levels - total / beside))
    share = _histograms(levels) / pixels
    grey = np.arange(1.0, share.shape[1] + 1)
    apart = np.abs(grey[:, None] - grey)
    one, other = share[:, :, None], share[:, None]
    present = (one > 0) & (other > 0)
    weighted = share * grey
    spread = np.abs(weighted[:, :, None] - weighted[:, None]) * present
    pulls = (share * off)[:, :, None] + (share * off)[:, None]
    kinds = (share > 0).sum(1)
    return {
        "Busyness": _ratio((share * off).sum(1), spread.sum((1, 2))),
        "Complexity": (apart * _ratio(pulls, one + other) * present).sum((1, 2)) / pixels,
        "Contrast": _ratio((one * other * apart**2).sum((1, 2)), kinds * (kinds - 1.0))
        * off.sum(1)
        / pixels,
        "Strength": _ratio(((one + other) * apart**2 * present).sum((1, 2)), off.sum(1)),
    }


def _histograms(levels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Number (or weight) of pixels of each level, (n, L)."""
    most = int(levels.max()) + 1
    keys = np.arange(len(levels))[:, None, None] * most + levels
    flat = None if weights is None else weights.ravel()
    return np.bincount(keys.ravel(), flat, len(levels) * most).reshape(-1, most)


def _bits(shares: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    return entr(shares).sum(axis) / np.log(2)


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """The ratio, and `empty` where there is nothing to divide by."""
    nothing = np.abs(below) < 1e-12
    return np.where(nothing, empty, above / np.where(nothing, 1.0, below))
