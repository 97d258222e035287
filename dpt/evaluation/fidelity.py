"""How alike two sets of pictures are as sets: the Fréchet distance between Gaussians fitted to their features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def frechet(one: Floats, other: Floats) -> float:
    """|m - n|^2 + tr(C + D - 2 (C D)^(1/2)) for means m, n and covariances C, D of features (pictures,width).

    Estimated from few pictures it comes out too large; it is comparable between sets of one size only.
    """
    for features in (one, other):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError("a set of pictures is at least two rows of finite features")
    apart = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # tr (C D)^(1/2) is the sum of roots of the eigenvalues of C^(1/2) D C^(1/2), which is symmetric.
    root = _root(np.atleast_2d(first))
    inner = np.linalg.eigvalsh(root @ np.atleast_2d(second) @ root)
    shared = np.sqrt(np.clip(inner, 0, None)).sum()
    return float(max(apart @ apart + np.trace(np.atleast_2d(first)) + np.trace(np.atleast_2d(second)) - 2 * shared, 0))


def _root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
