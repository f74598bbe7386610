"""What is known about a deployment, as plain frozen data: the seam between the tasks that find things out and the report.

Tasks make facts (`tasks/`), keep them as JSON in the store, and hand a `Report` to the renderers here; nothing in this
package looks anywhere else. Every class goes to JSON and back unchanged: `from_json(Report, to_json(report)) == report`.

    Report
      builds: BuildReport...           one per model x target x precision, and per shape bucket of it
        build: BuildFacts              what was made: size, compile time, digests, tuned or not
        verify: VerifyFacts | None     how far the outputs are from the reference
        layers: LayerFacts...          one per call of the plan, in order
        measure: MeasureFacts | None   ours beside the rivals, with every sample and the machine it ran on
      machine: MachineFacts | None   what that machine can do at best

Names of models, nodes and outputs come from files of strangers: they are kept as they are here and escaped by each renderer.
Units stand in the names; a time is one call of the whole network unless said otherwise.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

MISSING = "missing: "       # how the error of a contender begins that is not installed, and so took no part
SCHEMA = 1          # of the JSON form; raise it when a field changes its meaning


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """One shape bucket of an artifact (most have one). `name` is unique in a report: "reader[1x3x48x320]@x86", "net@x86".

    artifact: the build's name in the deployfile, "reader@x86", which all buckets of an artifact share.
    size_bytes: all files of the artifact; weights_bytes and arena_bytes: parts of what it needs in memory. compile_s: sum
    over the tasks that made it, as if nothing had come from the store. kernels, tuned_kernels: distinct kernels, and how
    many of them use a schedule from tuning records; transferred_kernels: those of them tuned on another machine;
    static_kernels: by static cycles, not by times; tuned_graph: whether measured costs decided algorithms and layouts.
    digests: of the model, the artifact, ...; versions: of what took part.
    """

    name: str
    model: str
    target: str
    precision: str
    size_bytes: int
    weights_bytes: int = 0
    arena_bytes: int = 0
    compile_s: float = 0.0
    kernels: int = 0
    tuned_kernels: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    artifact: str = ""
    transferred_kernels: int = 0
    static_kernels: int = 0
    tuned_graph: bool = False


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is from its reference. Made by `statistics.output_error`, which says what each number means."""

    output: str
    shape: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    tolerance_used: float
    passed: bool


@dataclass(frozen=True, slots=True)
class VerifyFacts:
    """An artifact against a reference. An element passes when |ours - expected| <= atol + rtol * |expected|.

    reference: "onnxruntime 1.31.1", "interpreter", "test_data_set_0". data: where the inputs came from. first_bad_node: the
    first node of the model whose value diverges, when it failed; repro: the folder with a minimal model and its inputs.
    device: where the artifact ran; empty: on this machine. engine: what ran it there, where no CPU does: "wasmtime 50.0.1".
    """

    reference: str
    data: str
    rtol: float
    atol: float
    outputs: tuple[OutputError, ...]
    first_bad_node: str = ""
    repro: str = ""
    error: str = ""
    device: str = ""
    engine: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and bool(self.outputs) and all(o.passed for o in self.outputs)


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One call of the plan. sources: the model's nodes it stands for. flops: 2 per multiply-add, as the layer's definition
    counts them (a Winograd kernel is credited with the direct convolution's); computed_flops: those it really does (0: the
    same). network_us: median time inside the whole
    network; hot_us: alone, repeated, with warm caches (None: not measured). moved_bytes: inputs, weights and outputs, once;
    weights_bytes: the part of it that is constant. chunks: into how many pieces the work can be cut for threads, the most
    of its phases (0: not known). schedule: "tuned" (confirmed on this machine), "transferred" (on another one that is the
    same kind of target), "static" (by static cycles, nobody has timed it), "default". workload: the kernel's key in
    tuning records.
    """

    kernel: str
    sources: tuple[str, ...]
    network_us: float
    flops: float = 0.0
    hot_us: float | None = None
    moved_bytes: int = 0
    weights_bytes: int = 0
    computed_flops: float = 0.0
    chunks: int = 0
    schedule: str = "default"
    workload: str = ""


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """A cache, or main memory. holds_bytes: what the threads can keep there together (0: any amount). Bandwidths of all
    threads together; a copy counts the bytes it reads and those it writes."""

    name: str
    holds_bytes: int
    read_gb_s: float
    copy_gb_s: float


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """The ceilings of that many threads. peak_gflops: fp32 multiply-adds, 2 each. levels: nearest first, memory last."""

    threads: int
    peak_gflops: float
    levels: tuple[MemoryLevel, ...]


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The measured ceilings of one machine: of one thread, and of all its cores (ascending)."""

    speeds: tuple[MachineSpeed, ...]

    def at(self, threads: int) -> MachineSpeed:
        """Of `threads`: as measured, or one thread's times as many, but no more than what all cores together reach."""
        one, most = self.speeds[0], self.speeds[-1]
        if (known := next((s for s in self.speeds if s.threads == threads), None)) is not None:
            return known
        if threads > most.threads:
            return most
        levels = tuple(
            MemoryLevel(far.name, near.holds_bytes * threads if near.name == "L2" else near.holds_bytes,
                        min(threads * near.read_gb_s, far.read_gb_s), min(threads * near.copy_gb_s, far.copy_gb_s))
            for near, far in zip(one.levels, most.levels, strict=False)
        )
        return MachineSpeed(threads, min(threads * one.peak_gflops, most.peak_gflops), levels)


@dataclass(frozen=True, slots=True)
class System:
    """The machine while measuring. mhz: lowest and highest clock seen over its cores before and after; steal_percent: time
    the hypervisor gave to others meanwhile; governor "" when the system does not say. Of a device: its name, its hottest
    sensor before and after (0: it has none), the time between spent at each clock (MHz, share), how a calibrated loop of
    integers changed between (0.02: 2 % more time), what disturbed the measurement, and, where it is no device at all, why
    (then there are no times)."""

    cpu: str = ""
    cores: int = 0
    kernel: str = ""
    governor: str = ""
    mhz: tuple[float, float] = (0.0, 0.0)
    load_average: float = 0.0
    steal_percent: float = 0.0
    device: str = ""
    temperature_c: tuple[float, float] = (0.0, 0.0)
    residency: tuple[tuple[float, float], ...] = ()
    calibration_change: float = 0.0
    disturbances: tuple[str, ...] = ()
    emulated: str = ""


@dataclass(frozen=True, slots=True)
class ContenderFacts:
    """One contender of an interleaved measurement: its configuration and all its samples.

    bursts_us: times of single calls, one tuple per burst (thinned evenly when a burst has many). load_ms: from nothing
    loaded to ready, its imports included. peak_bytes: most memory its process ever held, Python included. outputs: against
    the common reference, empty when there is none. error: why it has no samples, or no more; times are 0 then.
    """

    name: str
    ours: bool = False
    version: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    bursts_us: tuple[tuple[float, ...], ...] = ()
    median_us: float = 0.0
    p10_us: float = 0.0
    p90_us: float = 0.0
    variation: float = 0.0
    unstable: bool = False
    load_ms: float = 0.0
    peak_bytes: int = 0
    outputs: tuple[OutputError, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against one baseline: speedup = baseline's time / ours (above 1: ours is faster) with its 95 % interval.

    verdict: "faster", "slower" or "within noise"; unstable when either side's numbers vary too much.
    """

    baseline: str
    speedup: float
    low: float
    high: float
    verdict: str
    unstable: bool


@dataclass(frozen=True, slots=True)
class CountedKernel:
    """Of a kernel where nothing can be timed: how often a run calls it, the instructions that all its calls execute, and the
    static cycles that they take (None: no model of that CPU was there). Neither is a time."""

    kernel: str
    calls: int
    instructions: int
    static_cycles: float | None = None


@dataclass(frozen=True, slots=True)
class MeasureFacts:
    """One interleaved run: every contender took part in every round, in turns, with the same number of threads.

    reference: the contender the others' outputs were compared with, "" when the caller gave the expected outputs.
    counted: kernels, most instructions first, where the device is emulated; not_counted: why there are none.
    """

    threads: int
    rounds: int
    burst_s: float
    contenders: tuple[ContenderFacts, ...]
    comparisons: tuple[Comparison, ...]
    system: System = field(default_factory=System)
    variation_limit: float = 0.05
    reference: str = ""
    counted: tuple[CountedKernel, ...] = ()
    not_counted: str = ""

    @property
    def ours(self) -> ContenderFacts | None:
        return next((c for c in self.contenders if c.ours), None)


@dataclass(frozen=True, slots=True)
class BuildReport:
    build: BuildFacts
    verify: VerifyFacts | None = None
    layers: tuple[LayerFacts, ...] = ()
    measure: MeasureFacts | None = None
    machine: MachineFacts | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that one `tc report` shows. command: what to type to get it again; date: ISO 8601, or ""."""

    builds: tuple[BuildReport, ...]
    command: str = "tc report"
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain data of facts. JSON has no NaN and no infinity: they become the strings "nan", "inf" and "-inf"."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(kind: type[T], data: Any) -> T:
    """The facts of that class in plain data. Fields it does not know are skipped (written by a newer version).

    Raises ValueError naming the field when one is missing or of the wrong type.
    """
    return typing.cast(T, _decode(kind, data, kind.__name__))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), data, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), data, where)
    if origin is Mapping:
        if not isinstance(data, Mapping):
            raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
        return {str(k): _decode(typing.get_args(kind)[1], v, f"{where}.{k}") for k, v in data.items()}
    if origin is types.UnionType:
        return None if data is None else _decode(typing.get_args(kind)[0], data, where)
    if kind is float and isinstance(data, str) and data in ("nan", "inf", "-inf"):
        return float(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, found {type(data).__name__}")
    return data


def _decode_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    values = {f.name: _decode(hints[f.name], data[f.name], f"{where}.{f.name}") for f in fields(kind) if f.name in data}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _decode_tuple(items: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise ValueError(f"{where}: expected a list, found {type(data).__name__}")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_decode(items[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if len(items) != len(data):
        raise ValueError(f"{where}: expected {len(items)} values, found {len(data)}")
    return tuple(_decode(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, data, strict=True)))
