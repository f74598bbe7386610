"""What a cost model learns from, as the records keep it: one text per trial, opaque to them.

    <version of the features>:<analytic cost>:<rows>:<base64 of zlib of float32>
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable

import numpy as np

from toolchain.build.records import KeptSample
from toolchain.te.tune.features import COLUMNS, STATEMENTS, VERSION
from toolchain.te.tune.model import CostModel, Sample
from toolchain.te.tune.space import Point


def sample_text(point: Point) -> str:
    """"": the point has no features."""
    if not point.features.size:
        return ""
    data = base64.b64encode(zlib.compress(point.features.astype("<f4").tobytes())).decode()
    return f"{VERSION}:{point.expected!r}:{len(point.features)}:{data}"


def sample_of(text: str, cost: float) -> Sample | None:
    """None: of another version, or no sample at all (what an imported file holds may be anything)."""
    version, _, rest = text.partition(":")
    if version != str(VERSION):
        return None
    try:
        expected, rows, data = rest.split(":")
        if not 1 <= int(rows) <= STATEMENTS:
            return None
        features = np.frombuffer(zlib.decompress(base64.b64decode(data)), "<f4").reshape(int(rows), len(COLUMNS))
        return Sample(features.astype(np.float32), float(expected), cost) if np.isfinite(features).all() else None
    except (ValueError, zlib.error):
        return None


def teach(model: CostModel, kept: Iterable[KeptSample]) -> int:
    """Tell a model what earlier sessions measured; how many samples that were. Times of two sessions are not compared."""
    groups: dict[str, list[Sample]] = {}
    for k in kept:
        if (sample := sample_of(k.sample, k.best_cost)) is not None:
            groups.setdefault(f"{k.session} {k.workload}", []).append(sample)
    for group, samples in groups.items():
        model.learn(group, samples)
    return sum(map(len, groups.values()))
