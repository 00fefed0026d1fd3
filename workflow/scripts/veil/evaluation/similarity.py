"""How alike two sets of image-label pairs are (floor 2).

The Fréchet distance of Dowson and Landau 1982 between normal laws fitted to features, as the
FID (Heusel et al. 2017) has it, in a feature space that needs no download: a convolutional network
of fixed random weights over image and label together. Random features rank medical and other
images unlike ImageNet's soberly (Naeem et al. 2020), and seeing both channels they notice labels
that do not lie on their vessels, which a network for photographs cannot. Its values compare
with each other, never with an FID.

Privacy: a distance to real patches is an exact number about real patients, charged nowhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from veil import artifacts

PER_IMAGE = 5
"""Neighbours that the radius of an image's ball reaches to, as in Naeem et al. 2020."""
AT_MOST = 2000
"""Rows of a set where all are compared with all."""
FEATURES = "random-conv-v1"
"""Name of the feature space; to be changed with anything that moves its values."""
WIDTHS = (16, 32, 64)
ROWS_AT_ONCE = 512


def evenly(count: int, most: int = AT_MOST) -> np.ndarray:
    """Rows to look at, spread evenly over `count` (sets stand in order of patient or volume)."""
    return np.unique(np.linspace(0, count - 1, most).astype(int))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of two sets of features (n, d) and (m, d), at least two of each.

    |mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64. The last trace is the sum of
    the singular values of A1 A2^T / sqrt((n - 1)(m - 1)) with centred features A, which needs no
    root of a matrix and stays exact where covariances are singular.
    """
    centres = first.mean(0), second.mean(0)
    gap = float(((centres[0] - centres[1]) ** 2).sum())
    roots = [
        np.asarray(np.linalg.qr((rows - centre) / np.sqrt(len(rows) - 1), mode="r"))
        for rows, centre in zip((first, second), centres, strict=True)
    ]
    spread = sum(float((root**2).sum()) for root in roots)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(gap + spread - 2 * float(shared), 0.0)


def manifold_scores(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    """Precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al. 2020.

    Of features (n, d) and (m, d). Around each point is a ball that reaches its fifth neighbour of
    its own set. Precision: synthetic points in a real ball; recall: real points in a synthetic
    one; density: real balls over a synthetic point, over 5; coverage: real balls with a synthetic
    point. Density alone may pass 1.
    """
    first, second = (torch.from_numpy(rows[evenly(len(rows))]) for rows in (real, synthetic))
    around = [
        torch.cdist(rows, rows).kthvalue(min(PER_IMAGE + 1, len(rows)), 1).values
        for rows in (first, second)
    ]
    between = torch.cdist(first, second)
    in_real, in_synthetic = between < around[0][:, None], between < around[1][None]
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_synthetic.any(1).double().mean()),
        "density": float(in_real.sum(0).double().mean() / PER_IMAGE),
        "coverage": float(in_real.any(1).double().mean()),
    }


class Inception:
    """Inception-v3's pool3 features, of whoever has the weights.

    They come as the TorchScript file that StyleGAN's and clean-fid's FID read, which takes uint8
    RGB (n, 3, H, W) of any size and gives (n, 2048).
    """

    def __init__(self, path: Path, sha256: str):
        """Raise ArtifactError unless the file is the one that was meant: it holds code."""
        if not path.is_file():
            raise artifacts.ArtifactError(f"{path}: fidelity.inception: no such file")
        if (found := artifacts.file_hash(path)) != sha256:
            raise artifacts.ArtifactError(
                f"{path}: fidelity.inception_sha256 is {found}; allowed: {sha256}"
            )
        self.network = torch.jit.load(path, map_location="cpu").eval()

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Float64 (n, 2048) of grey images, uint8 (n, H, W)."""
        rows = torch.from_numpy(np.ascontiguousarray(images))
        parts = [
            self.network(part[:, None].expand(-1, 3, -1, -1), return_features=True)
            for part in rows.split(ROWS_AT_ONCE)
        ]
        return torch.cat(parts).double().numpy()


@torch.no_grad()
def features(pairs: np.ndarray) -> np.ndarray:
    """Features float64 (n, 224) of uint8 pairs (n, 2, H, W): each map's mean, and its deviation."""
    network = _network()
    parts = [
        _describe(network, pairs[start : start + ROWS_AT_ONCE])
        for start in range(0, len(pairs), ROWS_AT_ONCE)
    ]
    return torch.cat(parts).double().numpy()


def _describe(network: nn.ModuleList, pairs: np.ndarray) -> Tensor:
    maps = torch.from_numpy(pairs.astype(np.float32)) / torch.tensor([127.5, 0.5]).view(2, 1, 1) - 1
    found = []
    for layer in network:
        maps = functional.relu(layer(maps))
        found += [maps.mean((2, 3)), maps.std((2, 3), correction=0)]
        maps = functional.avg_pool2d(maps, 2)
    return torch.cat(found, 1)


def _network() -> nn.ModuleList:
    """Convolutions of 3 x 3 with He's normal weights, the same everywhere and always."""
    random = torch.Generator().manual_seed(0)
    layers = nn.ModuleList()
    for inputs, outputs in zip((2, *WIDTHS), WIDTHS, strict=False):
        layer = nn.Conv2d(inputs, outputs, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
        assert layer.bias is not None
        nn.init.uniform_(layer.bias, -0.5, 0.5, generator=random)
        layers.append(layer)
    return layers
