"""Schedules as short functions that call primitives and ask for choices: one per family of kernels, for vector CPUs."""
