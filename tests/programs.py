"""Programs that tests need beside Python packages: found, or installed where that is allowed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGES = {"sshd": "openssh-server", "ssh-keygen": "openssh-client", "qemu-aarch64-static": "qemu-user-static",
            "qemu-riscv64-static": "qemu-user-static", "node": "nodejs",
            "ip": "iproute2", "ss": "iproute2", "nsenter": "util-linux", "llvm-mca": "llvm", "llvm-mc": "llvm"}


def program(name: str) -> str:
    """Its path; installs its Debian package where that is allowed. Raises RuntimeError that says what is missing."""
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    if (found := shutil.which(name, path=places)) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with (Path(tempfile.gettempdir()) / "tc-tests-apt.lock").open("w") as lock:     # several test processes, one apt-get
            fcntl.flock(lock, fcntl.LOCK_EX)
            for words in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", PACKAGES[name]]):
                if shutil.which(name, path=places) is None:
                    subprocess.run(["apt-get", *words], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False,
                                   capture_output=True, timeout=300)
        found = shutil.which(name, path=places)
    if found is None:
        raise RuntimeError(f"{name} is missing, and may not be installed by this user: apt-get install {PACKAGES[name]}")
    return found
