"""What earlier sessions measured of a kernel is not measured again: where one layer of a network has changed, the kernels of
the others are known.

Of the same conditions only: the same kernel with the same weights, machine, cores, code and versions. Which sessions those
are is noted when a session begins, so that it finds the same ones however often it is killed and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolchain.build.records import Records, TrialRow
from toolchain.core.digest import digest_json
from toolchain.core.unit import Unit
from toolchain.core.versions import installed_version
from toolchain.tasks.code import code_digest
from toolchain.tasks.tuning.kernels import TunedKernel
from toolchain.tasks.tuning.local import cores_for
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.session import Entry

CODE = ("core", "te", "kernels", "targets", "tasks/tuning")      # decides which schedules there are and how fast they run
BY_CHANCE = {"timeout", "crash", "drift", "implausible"}         # causes that another attempt may not meet


def versions() -> dict[str, str]:
    return {package: installed_version(package) or "" for package in ("toolchain", "llvmlite", "numpy")}


def conditions(kernels: Sequence[TunedKernel], machine: str, unit: Unit) -> dict[str, str]:
    """By key: all that the cost of a schedule of a kernel depends on, but for the hour."""
    here = [machine, code_digest(*CODE), versions(), str(unit)]
    return {k.key: digest_json([*here, list(k.job.weights), cores_for(k.job.target)])[:32] for k in kernels}


def sessions_with(wanted: Mapping[str, str], records: Records) -> dict[str, int]:
    """Sessions that measured some of the kernels under these conditions, and how many trials each has by now."""
    return {session: trials for session, provenance, trials in records.sessions()
            if _shared(wanted, provenance.get("conditions", {}))}


def known_trials(wanted: Mapping[str, str], counts: Mapping[str, int], records: Records, unit: Unit) -> list[Entry]:
    """What those sessions measured under these conditions when they had so many trials; failures by chance left out."""
    told = {session: provenance.get("conditions", {}) for session, provenance, _ in records.sessions()}
    entries = [Entry(row.workload, trial_of(row, unit))
               for session, n in counts.items()
               for same in [_shared(wanted, told.get(session, {}))]
               for row in records.trials(session)[:n] if row.workload in same]
    return [e for e in entries if e.trial.cause not in BY_CHANCE]


def trial_of(row: TrialRow, unit: Unit) -> Trial:
    return Trial(row.answers, row.samples, row.error, row.cost_s, row.stopped, unit=unit)


def _shared(wanted: Mapping[str, str], told: Mapping[str, str]) -> set[str]:
    return {key for key, how in wanted.items() if told.get(key) == how}
