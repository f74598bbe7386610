"""CPUs through LLVM: loop IR -> LLVM text -> object -> shared library with the C runtime. LLVM text is written nowhere else.

This file imports nothing: loading an artifact must not load the compiler.
"""
