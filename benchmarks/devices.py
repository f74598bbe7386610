"""What a board costs beside its own work, and what is left when things go wrong. A real sshd, in a network namespace with a
cable of its own where that is permitted, else on loopback.

    python benchmarks/devices.py [--faults 20] [--network loopback]

Prints the time from nothing to a first measurement, what each further measurement takes beyond the model's own time, and the
fault matrix: how often each fault ended in an error in time, and what was left behind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "remote"))

import board_models
import network
from faults import FAULTS, World, check_after
from loopback import Sshd

from toolchain.remote import ssh
from toolchain.remote.model import RemoteModel, Sampling, upload_artifact
from toolchain.remote.session import Session
from toolchain.targets.llvm.runner_program import MACHINES, runner_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, metavar="N", help="how often each fault is made to happen")
    parser.add_argument("--network", choices=network.kinds(), default=network.kinds()[0], help="where the board stands")
    parser.add_argument("--only", default="", help="one fault of the matrix, by name")
    arguments = parser.parse_args()
    for machine in MACHINES:
        print(f"runner for {machine}: {len(runner_program(machine)) / 1e3:.1f} kB")
    with tempfile.TemporaryDirectory(prefix="tc-devices-") as folder:
        artifact = board_models.artifact(Path(folder) / "artifact", "work")
        print(f"network: {arguments.network}")
        sshd = Sshd(Path(folder) / "board", network=network.new(arguments.network))
        try:
            costs(World(sshd, artifact, random.Random(0)))
            if arguments.faults:
                matrix(World(sshd, artifact, random.Random(0)), arguments.faults, arguments.only)
        finally:
            sshd.close()


def costs(world: World, sessions: int = 5, measurements: int = 200) -> None:
    """Medians over sessions, and over the measurements of one."""
    board, program = world.sshd.board(), runner_program("x86_64")
    sampling = Sampling(number=1, repeat=1, min_repeat_ms=0, warmup=0)
    firsts, overheads = [], []
    for _ in range(sessions):
        begun = time.perf_counter()
        with Session(board, ssh.connect(board), program) as session:
            model = RemoteModel(session, 0, *upload_artifact(session, *board_models.files(world.artifact)), threads=1)
            model.set_inputs([board_models.X.tobytes()])
            model.benchmark(sampling)
            firsts.append(time.perf_counter() - begun)
            for _ in range(measurements // sessions):
                begun = time.perf_counter()
                (us,) = model.benchmark(sampling)
                overheads.append((time.perf_counter() - begun) * 1e3 - us / 1e3)
    print(f"connect, upload and first measurement: median {statistics.median(firsts):.2f} s, most {max(firsts):.2f} s")
    ordered = sorted(overheads)
    print(f"each further measurement, beyond the model's own time: median {statistics.median(ordered):.2f} ms, "
          f"99 % {ordered[int(0.99 * len(ordered))]:.2f} ms ({len(ordered)} measurements)")


def matrix(world: World, times: int, only: str) -> None:
    """Each fault, `times` times in turn, on one board that has to recover from all of them."""
    print(f"{'fault':<24}{'errors in time':>15}{'most s':>8}   left behind")
    for name, fault in FAULTS.items():
        if only and name != only:
            continue
        good, took, left, last = 0, [], [], ""
        for _ in range(times):
            begun = time.monotonic()
            try:
                last = str(fault(world)).replace("\n", " | ")
                good += 1
            except AssertionError:
                last = traceback.format_exc(limit=1).splitlines()[-1]
                print(f"  {name}: {last}")
            took.append(time.monotonic() - begun)
            left += check_after(world)
        print(f"{name:<24}{good:>9} of {times:<3}{max(took):>7.1f}   {', '.join(sorted(set(left))) or 'nothing'}")
        print(f"    {last}", flush=True)


if __name__ == "__main__":
    main()
