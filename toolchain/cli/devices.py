"""`tc devices`: the boards of a deployfile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.build.caret import printable
from toolchain.build.deployfile import Deployfile
from toolchain.cli.commands import command, project_options
from toolchain.cli.doctor import Finding, rows
from toolchain.cli.on_device import board_named, told
from toolchain.cli.project import open_project
from toolchain.cli.screen import count, style_of
from toolchain.core.errors import DeviceError, ToolchainError, UsageError
from toolchain.core.settings import settings
from toolchain.tasks.plan import tuning_devices

if TYPE_CHECKING:
    from toolchain.remote.board import Board
    from toolchain.remote.session import Session

ACTIONS = ("list", "doctor", "add", "rekey", "quarantine")
LOW_DISK_BYTES = 64 << 20


@command("devices")
@click.argument("action", type=click.Choice(ACTIONS), default="list")
@click.argument("names", nargs=-1)
@project_options
@click.option("--accept", metavar="SHA256:...", help="add, rekey: the fingerprint you have compared; asked for without it.")
@click.option("--off", is_flag=True, help="quarantine: use the device again.")
@click.option("--reason", default="set aside by hand", help="quarantine: why.")
@click.option("--json", "as_json", is_flag=True, help="list, doctor: print JSON.")
def devices_command(
    action: str, names: tuple[str, ...], file: Path | None, folder: Path | None, accept: str | None, off: bool, reason: str,
    as_json: bool,
) -> int:
    """List the boards of the deployfile, check them, accept their host keys, set them aside.

    \b
    list        which there are, and what uses them; connects to none
    doctor      connects: CPU, kernel, governor, temperature, disk, and whether the targets' code runs there
    add         shows the board's host key and pins it
    rekey       the same for a board whose key has changed: it was installed anew
    quarantine  nothing uses the board until `--off`

    \b
    Example:
      tc devices add kitchen
      tc devices doctor
    """
    project = open_project(file, folder)
    boards = [board_named(project, name) for name in names or project.deployfile.devices]
    if action in ("add", "rekey", "quarantine") and len(boards) != 1:
        known = ", ".join(project.deployfile.devices) or "none is declared"
        raise UsageError(f"`tc devices {action}` takes one device", fix=f"name it: {known}")
    if action == "list":
        return list_devices(project.deployfile, boards, as_json=as_json)
    if action == "doctor":
        return doctor(project.deployfile, boards, as_json=as_json)
    if action == "quarantine":
        return quarantine(boards[0], reason, off=off)
    return accept_key(boards[0], accept, changed=action == "rekey")


# --- list -------------------------------------------------------------------------------------------------------------

def list_devices(deployfile: Deployfile, boards: list[Board], *, as_json: bool) -> int:
    from toolchain.remote.quarantine import reason

    found = [{
        "name": b.name, "address": b.where.partition("(")[2].rstrip(")"), "exec_prefix": b.exec_prefix,
        "targets": [name for name, spec in deployfile.targets.items() if b.name in tuning_devices(spec)],
        "quarantine": reason(b),
    } for b in boards]
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    if not found:
        print("no devices: write some into the section `devices` of the deployfile")
    width = max((len(b.name) for b in boards), default=0)
    for d in found:
        notes = [f"for {', '.join(d['targets'])}" if d["targets"] else "no target uses it",
                 f"runs {d['exec_prefix']}" if d["exec_prefix"] else "",
                 f"in quarantine: {d['quarantine']}" if d["quarantine"] else ""]
        print(printable(f"{d['name']:<{width}}  {d['address']}  {'; '.join(n for n in notes if n)}"))
    return 0


# --- doctor -----------------------------------------------------------------------------------------------------------

def doctor(deployfile: Deployfile, boards: list[Board], *, as_json: bool) -> int:
    """Exit code 5 when one of them cannot be used."""
    findings = [finding for board in boards for finding in examine(deployfile, board)]
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    elif findings:
        for line in rows(findings, style_of(sys.stdout, settings(), os.environ.get("TERM", ""))):
            print(printable(line))
    else:
        print("no devices: write some into the section `devices` of the deployfile")
    return DeviceError.exit_code if any(f.status == "missing" for f in findings) else 0


def examine(deployfile: Deployfile, board: Board) -> Iterator[Finding]:
    """What a board says of itself, a line each; or the one thing that keeps it from being used."""
    from toolchain.tasks.boards import probe

    try:
        with probe(board, told) as session:
            yield from _healthy(board, session)
            yield from _targets(deployfile, board, session)
    except ToolchainError as error:
        yield Finding(board.name, "missing", error.what, "everything on this device", error.fix)


def _healthy(board: Board, session: Session) -> Iterator[Finding]:
    from toolchain.tasks.boards import board_facts, conditions

    facts, now = board_facts(session), conditions(session)
    name = board.name
    about = (facts.model, facts.cpu, facts.machine, count(facts.cpus, "CPUs"), f"kernel {facts.kernel}",
             f"up to {facts.max_mhz:.0f} MHz" if facts.max_mhz else "")
    yield Finding(name, "ok", f"reachable: {', '.join(part for part in about if part)}")
    if facts.emulated:
        yield Finding(name, "warning", f"emulated: {facts.emulated}", "times: results are compared, nothing is timed")
    if facts.governors:
        steady = facts.governors == ("performance",)
        yield Finding(name, "ok" if steady else "warning", f"governor {', '.join(facts.governors)}", "" if steady else
                      "steady clocks: measurements may be marked unstable",
                      "" if steady else "as root there: cpupower frequency-set -g performance")
    if board.cool_below_c and not now.temperature_c:
        yield Finding(name, "warning", "no sensor tells a temperature", "cool_below_c: nothing is waited for")
    if now.temperature_c:
        hot = board.cool_below_c and now.temperature_c >= board.cool_below_c
        yield Finding(name, "warning" if hot else "ok", f"{now.temperature_c:.0f} C at the hottest sensor")
    if now.throttled_now:
        yield Finding(name, "warning", f"throttled now: {now.throttled_now}", "measurements that mean anything",
                      "a stronger power supply, or cooling")
    low = facts.disk_free_bytes < LOW_DISK_BYTES
    yield Finding(name, "warning" if low else "ok", f"{facts.disk_free_bytes / 1e6:.0f} MB free in {board.folder}, "
                  f"{facts.memory_bytes / 1e6:.0f} MB of memory available", "networks larger than that" if low else "",
                  "make room, or name another `folder`" if low else "")


def _targets(deployfile: Deployfile, board: Board, session: Session) -> Iterator[Finding]:
    """Whether the code of the targets that name this device runs on its CPU."""
    from toolchain.targets import presets
    from toolchain.targets.features import with_features
    from toolchain.targets.llvm.runner_program import machine_of
    from toolchain.tasks.boards import check_cpu, machine

    here = machine(session)
    for name, spec in deployfile.targets.items():
        if board.name not in tuning_devices(spec):
            continue
        target = with_features(presets.target(spec.cpu), spec.features)
        try:
            if machine_of(target) != here:
                raise DeviceError(f"its programs are for {machine_of(target)}, the board's are for {here}",
                                  fix=f"name the board's CPU as `cpu` of targets.{name}")
            check_cpu(session, target)
        except DeviceError as error:
            yield Finding(board.name, "missing", f"target {name}: {error.what}", f"target {name}", error.fix)
        else:
            yield Finding(board.name, "ok", f"target {name}: its CPU has all that the code needs")


# --- keys, quarantine -------------------------------------------------------------------------------------------------

def accept_key(board: Board, accept: str | None, *, changed: bool) -> int:
    """Pin the key that the board shows now, if that is the one the user has compared."""
    from toolchain.remote.host_keys import fingerprint, known_keys, pin
    from toolchain.remote.ssh import algorithm_of, fetch_host_key

    address, algorithm, key = fetch_host_key(board)
    shown, known = fingerprint(key), known_keys(address.host, address.port)
    if board.fingerprint:
        raise UsageError(f"the deployfile itself names the host key of '{board.name}'",
                         where=f"devices.{board.name}.fingerprint",
                         fix=f"the board shows {shown}: write that there, or leave the key out")
    if any(k.key == key and not k.revoked for k in known):
        print(f"{board.name}: its host key is known already: {shown}")
        return 0
    if known and not changed:
        raise DeviceError(f"another host key is known: {', '.join(k.fingerprint for k in known)}; it shows {shown}",
                          where=board.where, fix=f"if the board was installed anew: tc devices rekey {board.name}")
    print(f"{board.name} shows the host key {shown} ({algorithm_of(key)})")
    if accept is None:
        print(f"compare it with the board's own: ssh-keygen -lf /etc/ssh/ssh_host_{algorithm_of(key)}_key.pub")
        if not sys.stdin.isatty():
            raise UsageError("nobody is here to say whether it is the right one", fix=f"--accept {shown}")
        click.confirm("is it the same?", abort=True)
    elif accept != shown:
        raise DeviceError(f"it shows {shown}, not the accepted {accept}", where=board.where, fix=(
            "is `host` right? is somebody in between? nothing was pinned"))
    print(f"pinned in {pin(address.host, address.port, algorithm, key)}")
    return 0


def quarantine(board: Board, why: str, *, off: bool) -> int:
    from toolchain.remote.quarantine import release, set_aside

    if off:
        release(board)
        print(f"{board.name} is used again")
    else:
        set_aside(board, why)
        print(f"{board.name} is not used until: tc devices quarantine {board.name} --off")
    return 0
