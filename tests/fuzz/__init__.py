"""Random networks through the whole stack: generated, compiled, run, and compared with two other implementations.

    python -m tests.fuzz.run --count 1000                               our own networks
    python -m tests.fuzz.run --generator nnsmith --count 1000           NNSmith's
    python -m tests.fuzz.run --metamorphic --count 1000                 each compiled in four ways that have to agree
    python -m tests.fuzz.schedules --count 1000                         random schedules

generate.py, builder.py, operators.py and layers.py make our networks, nnsmith_models.py the others; stack.py compiles and
runs them, judging.py says what is wrong, minimize.py makes a failure small. Slow and thorough by hand; a slice of it runs in
every test run, and with it the models of nnsmith.zip (corpus.py).
"""
