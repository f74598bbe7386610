"""Which tasks can be decided now: the suspending scheduler of Build Systems a la Carte (section 4.1.2), as data.

A task waits for its static inputs; then `needs` names its dynamic ones and it waits for those; then it is ready. Nothing
here runs a task or reads a store, so the executor and the planner share it. Depth is no concern: nothing recurses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from toolchain.build.task import Task
from toolchain.core.artifact import Artifact
from toolchain.core.errors import TaskError


class State(Enum):
    WAITING = "waiting"         # for inputs, or for its own turn
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"         # an input failed


@dataclass(slots=True, eq=False)
class Node:
    """One task of the plan and how far it is. `artifact` is the result of a task that is done; the planner leaves it None
    for tasks that would run."""

    task: Task
    inputs: dict[str, Node] = field(default_factory=dict)
    readers: list[Node] = field(default_factory=list)       # who waits for it
    missing: int = 0                                        # inputs not done yet
    expanded: bool = False                                  # `needs` has been asked
    state: State = State.WAITING
    artifact: Artifact | None = None
    digest: str = ""
    error: Exception | None = None                          # what `needs` raised

    @property
    def name(self) -> str:
        return self.task.name


class Frontier:
    """The known part of the plan. Ask `pop` for tasks, answer each with `finish` or `fail`."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.lost: list[tuple[Node, str]] = []              # tasks that can never run, and which task's failure is why
        self._ready: deque[Node] = deque()

    def want(self, goal: Task) -> Node:
        """Add a task and all it statically depends on.

        Raises TaskError: two tasks of one name that are not the same.
        """
        new: list[Node] = []
        pending = [goal]
        while pending:
            task = pending.pop()
            if node := self.nodes.get(task.name):
                _check_same(node.task, task)
                continue
            node = self.nodes[task.name] = Node(task)
            new.append(node)
            pending.extend(task.inputs.values())
        for node in new:
            self._link(node, node.task.inputs)
        return self.nodes[goal.name]

    def pop(self) -> Node | None:
        """A task whose inputs are all done; None when there is none now. `needs` is asked here; what it raises is put into
        the node's `error`."""
        while self._ready:
            node = self._ready.popleft()
            if node.state is not State.WAITING or node.missing:
                continue
            try:
                waits = self._expand(node)
            except Exception as e:
                node.error, waits = e, False
            if not waits:
                return node
        return None

    def _expand(self, node: Node) -> bool:
        """Ask for dynamic inputs, once. True: the task has to wait for them."""
        if node.expanded or node.task.needs is None:
            return False
        known = {name: child.artifact for name, child in node.inputs.items() if child.artifact is not None}
        if len(known) < len(node.inputs):
            return False                                    # planning: what it needs is not known before its inputs are
        node.expanded = True
        dynamic = node.task.needs(known)
        if both := node.inputs.keys() & dynamic.keys():
            raise TaskError(f"{min(both)!r} is both a static and a dynamic input", where=f"task {node.name!r}")
        for task in dynamic.values():
            self.want(task)
        self._link(node, dynamic)
        return True

    def _link(self, node: Node, inputs: Mapping[str, Task]) -> None:
        node.inputs.update((name, self.nodes[task.name]) for name, task in inputs.items())
        self._await(node, [self.nodes[task.name] for task in inputs.values()])

    def _await(self, node: Node, inputs: Iterable[Node]) -> None:
        for child in inputs:
            if child.state in (State.FAILED, State.SKIPPED):
                self._lose(node, child.name)
            elif child.state is State.WAITING:
                child.readers.append(node)
                node.missing += 1
        if not node.missing:
            self._ready.append(node)

    def _lose(self, node: Node, because: str) -> None:
        """Mark a task, and all that wait for it, as never to run."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node.state is State.WAITING:
                node.state = State.SKIPPED
                self.lost.append((node, because))
                pending.extend(node.readers)

    def finish(self, node: Node, artifact: Artifact | None, digest: str) -> None:
        """The task is done; whoever waited only for it becomes ready."""
        node.state, node.artifact, node.digest = State.DONE, artifact, digest
        for reader in node.readers:
            reader.missing -= 1
            if not reader.missing and reader.state is State.WAITING:
                self._ready.append(reader)
        node.readers.clear()

    def fail(self, node: Node) -> None:
        """The task failed; those that can now never run go to `lost`."""
        node.state = State.FAILED
        for reader in node.readers:
            self._lose(reader, node.name)

    def again(self, node: Node, damaged: Iterable[Node] = ()) -> None:
        """Decide about a task once more, done or not; first, those of its inputs whose files are damaged are made anew."""
        if node.state is State.DONE:
            node.state, node.artifact = State.WAITING, None
        for child in damaged:
            if child.state is State.DONE:
                child.state, child.artifact = State.WAITING, None
                self._ready.append(child)
        self._await(node, node.inputs.values())

    def cycle(self) -> list[str]:
        """Names of a cycle among the waiting tasks, the first repeated at the end; empty: there is none."""
        waiting = {n for n in self.nodes.values() if n.state is State.WAITING}
        while waiting:
            path: list[Node] = []
            node: Node | None = next(iter(waiting))
            while node is not None and node not in path:
                path.append(node)
                node = next((c for c in node.inputs.values() if c in waiting), None)
            if node is not None:
                return [n.name for n in path[path.index(node):]] + [node.name]
            waiting.difference_update(path[-1:])
        return []


def _check_same(known: Task, other: Task) -> None:
    """Dynamic needs of two tasks may name the same task twice, as long as they mean the same."""
    if known is other:
        return
    for what in ("run", "version", "params", "files", "resource"):
        if getattr(known, what) != getattr(other, what):
            raise TaskError(f"two different tasks have this name: their {what} differ", where=f"task {known.name!r}")
    if {n: t.name for n, t in known.inputs.items()} != {n: t.name for n, t in other.inputs.items()}:
        raise TaskError("two different tasks have this name: their inputs differ", where=f"task {known.name!r}")
