"""Trained networks to devices: `tc build` in a project folder, or `toolchain.compile` from Python."""

__version__ = "0.1.0"
