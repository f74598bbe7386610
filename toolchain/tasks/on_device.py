"""Step `measure` of a target with a device: the artifact's times there, layer by layer, and the conditions they were taken
under. What runs in an emulator has no times: then the facts say so, and hold none.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.build.task import Input, Result
from toolchain.build.worker import progress
from toolchain.core.errors import CodegenError
from toolchain.graph.serialize import load_files
from toolchain.remote.facts import BoardFacts, Conditions, board_facts, clock_shares, conditions, disturbances
from toolchain.remote.model import Sampling
from toolchain.report.facts import ContenderFacts, LayerFacts, MeasureFacts, System, to_json
from toolchain.report.measure import rounds_for
from toolchain.report.statistics import summarize
from toolchain.tasks.boards import BoardModule, board_of, cool_down, load_on
from toolchain.tasks.counted import counted
from toolchain.tasks.data import samples
from toolchain.tasks.measure import FACTS_FILE, HOT_REPEATS, HOT_TIME_US, PROFILES, schedules
from toolchain.tasks.steps import assembled_folder

BURST_S = 0.25
SAMPLES_PER_BURST = 10
OURS = "ours"


def measure(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """params: device, device_name, report (threads, time), those of the data."""
    (sample, *_) = samples(params, inputs, load_files(inputs["graph"].files))
    threads = params["report"]["threads"] or params["threads"]
    told = lambda text: progress(0, 0, text)                            # noqa: E731
    with tempfile.TemporaryDirectory(prefix="tc-measure-") as temporary:
        folder = assembled_folder(inputs["module"], Path(temporary) / "artifact")
        with load_on(board_of(params["device_name"], params["device"]), folder, threads, told) as module:
            bucket = module.prepare(sample.inputs)
            described = module.artifact.manifest["layers"][bucket]
            board = board_facts(module.session)
            if board.emulated:
                facts, layers = emulated(module, board, inputs, bucket)
            else:
                before = cool_down(module.session, told)
                facts, layers = timed(module, board, before, described, params["report"]["time"])
    written = json.dumps({"measure": to_json(facts), "layers": to_json(layers)}, allow_nan=False)
    (out / FACTS_FILE).write_text(written, encoding="utf-8")
    return Result("facts", {"median_us": facts.ours.median_us if facts.ours else 0.0})


def emulated(
    module: BoardModule, board: BoardFacts, inputs: Mapping[str, Input], bucket: int,
) -> tuple[MeasureFacts, tuple[LayerFacts, ...]]:
    """That it ran, and where; what its kernels execute there, counted: nothing that could be taken for a time."""
    ours = ContenderFacts(OURS, ours=True, error=f"emulated: {board.emulated}")
    facts = MeasureFacts(module.threads, 0, 0.0, (ours,), (), _system(module, board))
    try:
        found = counted(
            inputs["optimized"].meta["kernels"], inputs["module"].meta["schedules"], module.artifact.plans[bucket],
            module.artifact.target, lambda done, total: progress(done, total, "counting instructions"))
    except CodegenError as error:
        return replace(facts, not_counted=error.what), ()
    return replace(facts, counted=found), ()


def timed(
    module: BoardModule, board: BoardFacts, before: Conditions, described: Sequence[Mapping[str, Any]], seconds: float,
) -> tuple[MeasureFacts, tuple[LayerFacts, ...]]:
    """Bursts of samples as on this machine, then each layer in the network and alone."""
    once_us, rounds = module.once_us(), rounds_for(seconds)
    number = max(1, round(BURST_S * 1e6 / SAMPLES_PER_BURST / max(once_us, 1.0)))
    repeat = max(2, min(SAMPLES_PER_BURST, round(BURST_S * 1e6 / max(once_us, 1.0))))
    sampling = Sampling(number=number, repeat=repeat, min_repeat_ms=0, warmup=1)
    bursts = []
    for n in range(rounds):
        progress(n, rounds, f"on {module.session.board.name}")
        bursts.append(tuple(round(us, 2) for us in module.benchmark(sampling, once_us)))
    after = conditions(module.session)
    system = _system(module, board, before, after)
    ours = summarize(ContenderFacts(OURS, ours=True, config=_config(module), bursts_us=tuple(bursts)))
    ours = replace(ours, unstable=ours.unstable or bool(system.disturbances))
    progress(0, 0, "layer by layer")
    return MeasureFacts(module.threads, rounds, BURST_S, (ours,), (), system), profile(module, described, once_us)


def profile(module: BoardModule, described: Sequence[Mapping[str, Any]], once_us: float) -> tuple[LayerFacts, ...]:
    """As `tasks.measure.profile`, from the device."""
    inside, hot = module.profile(PROFILES, once_us), {}
    least, most = HOT_REPEATS
    for at, end in module.outermost_calls():
        repeats = int(np.clip(HOT_TIME_US / max(inside[at], 1.0), least, most))
        hot[at] = module.hot_us(at, end, repeats, once_us)
    return tuple(
        LayerFacts(kernel=d["kernel"], sources=tuple(d["sources"]), network_us=us, flops=float(d["flops"]),
                   hot_us=hot.get(n), moved_bytes=int(d["moved_bytes"]), weights_bytes=int(d["weights_bytes"]),
                   computed_flops=float(d["computed_flops"]), chunks=int(d["chunks"]), schedule=d["schedule"],
                   workload=d["workload"])
        for (n, us), d in zip(inside.items(), described, strict=True)
    )


def _config(module: BoardModule) -> dict[str, str]:
    board = module.session.board
    cpus = {"cpus": ",".join(map(str, board.cpus))} if board.cpus else {}
    return {"device": board.name, "threads": str(module.threads), **cpus, "schedules": schedules(module.artifact.manifest)}


def _system(
    module: BoardModule, board: BoardFacts, before: Conditions | None = None, after: Conditions | None = None,
) -> System:
    known = System(
        cpu=board.cpu, cores=board.cpus, kernel=board.kernel, governor=", ".join(board.governors),
        mhz=(board.max_mhz, board.max_mhz), device=module.session.board.name, emulated=board.emulated)
    if before is None or after is None:
        return known
    clocks = [mhz for mhz in (*before.mhz, *after.mhz) if mhz]
    found = list(disturbances(before, after))
    limit = module.session.board.cool_below_c
    if limit and before.temperature_c >= limit:
        found.append(f"it did not cool down below {limit:.0f} C")
    return replace(
        known, mhz=(min(clocks), max(clocks)) if clocks else known.mhz, load_average=before.load,
        temperature_c=(before.temperature_c, after.temperature_c), disturbances=tuple(found),
        residency=clock_shares(before, after),
        calibration_change=round(after.calibration_ns / max(1, before.calibration_ns) - 1, 4))
