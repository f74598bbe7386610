"""`--device` of `tc run` and `tc bench`: an artifact on a board of the deployfile."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolchain.build.caret import printable
from toolchain.cli.project import Project
from toolchain.core.errors import DeviceError, UsageError
from toolchain.core.suggest import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from toolchain.remote.board import Board
    from toolchain.tasks.boards import BoardModule


def board_named(project: Project, name: str) -> Board:
    """Raises UsageError: the deployfile has no such device."""
    from toolchain.tasks.boards import board_of

    devices = project.deployfile.devices
    if name not in devices:
        fix = did_you_mean(name, devices, noun="there are") if devices else "write it into the section `devices`"
        raise UsageError(f"no device '{name}'", where=project.file.name, fix=fix)
    return board_of(name, devices[name])


def told(text: str) -> None:
    """What a user waits for."""
    print(printable(text), file=sys.stderr, flush=True)


def bench(
    module: BoardModule, inputs: Mapping[int, Mapping[str, np.ndarray]], time_s: float, *, layers: bool, as_json: bool,
) -> None:
    """Times of an artifact's shape buckets on a board, by the board's clock. inputs: by bucket.

    Raises DeviceError: it is emulated, which has no times.
    """
    from toolchain.remote.model import Sampling
    from toolchain.report.statistics import percentile
    from toolchain.tasks.boards import board_facts, conditions, cool_down, disturbances

    board = module.session.board
    if emulated := board_facts(module.session).emulated:
        raise DeviceError(f"has no times: {emulated}", where=board.where, fix=(
            "`tc run --device` runs it; measure on a board"))
    for number, values in inputs.items():
        before = cool_down(module.session, told)
        module.prepare(values)
        once_us = module.once_us()
        repeat = max(5, min(1000, round(time_s * 1e6 / max(once_us, 1e4))))
        samples = module.benchmark(Sampling(number=1, repeat=repeat, min_repeat_ms=10, warmup=2), once_us)
        times = module.profile(10, once_us) if layers else {}
        found = disturbances(before, conditions(module.session))
        median, p10, p90 = (percentile(samples, p) for p in (50, 10, 90))
        label = f"[{module.labels[number]}]" if len(module.buckets) > 1 else ""
        if as_json:
            print(json.dumps({
                "device": board.name, "bucket": module.labels[number], "samples_us": samples, "median_us": median,
                "p10_us": p10, "p90_us": p90, "threads": module.threads, "disturbances": found,
                "layers": {str(n): us for n, us in times.items()}}))
            continue
        print(f"{module.name}{label} on {board.name}: median {median:.1f} us, p10 {p10:.1f} us, p90 {p90:.1f} us, "
              f"{len(samples)} samples, {module.threads} threads{'; unstable: ' + '; '.join(found) if found else ''}")
        names, total = module.op_names(number), sum(times.values()) or 1.0
        for n, us in sorted(times.items(), key=lambda item: -item[1]):
            print(f"{us:>10.1f} us {100 * us / total:5.1f} %  {printable(names[n])}")
