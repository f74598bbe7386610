"""Search for schedules: spaces, searchers, and the session that spends a budget. Pure: what measures and
remembers is handed in (`measure.Measurer`, `session.Log`), so that all of it runs
on a simulated machine.

    program (choices) -> schedule        Space        what may be chosen, found out by asking
    Space, seed                          searchers/   propose a batch, learn from its trials
    tasks, Measurer, Log, budget         session.py   which task is next, until the budget is spent
"""
