"""Random networks through the whole stack: generated, compiled, run, and compared with two other implementations.

    python -m tests.fuzz.run --count 1000 --seed 1

Slow and thorough by hand; test_fuzz.py runs a slice of it in every test run.
"""
