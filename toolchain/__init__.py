"""Trained networks to devices: `tc build` in a project folder, or `toolchain.compile` from Python.

    module = toolchain.compile("model.onnx", shapes={"input": (1, 3, 224, 224)})
    outputs = module.run({"input": x})

What is offered here is imported when it is first asked for (PEP 562): the command line imports this package, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain import te
    from toolchain.api import compile, load
    from toolchain.core.target import Target
    from toolchain.targets.llvm.module import Module

__version__ = "0.1.0"
__all__ = ["Module", "Target", "__version__", "compile", "load", "te"]

_OFFERED = {"compile": "toolchain.api", "load": "toolchain.targets.llvm.loading",
            "Module": "toolchain.targets.llvm.module", "Target": "toolchain.core.target"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "te":
        return import_module("toolchain.te")
    if name not in _OFFERED:
        raise AttributeError(f"module 'toolchain' has no attribute {name!r}")
    return getattr(import_module(_OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
