"""Which host keys are trusted: known_hosts files as OpenSSH reads them, and our own file of pinned keys.

Read here and not by paramiko: one line that it does not know (@cert-authority, @revoked) makes it refuse the whole file, and
it matches no patterns. Format: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from toolchain.core.settings import settings

REVOKED = "@revoked"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line that speaks of the host. place: "file:line"."""

    algorithm: str
    key: bytes
    place: str
    revoked: bool = False

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)


def fingerprint(key: bytes) -> str:
    """As ssh-keygen -l prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def host_name(host: str, port: int) -> str:
    """What known_hosts calls it: a port of its own is written [host]:port."""
    return host if port == 22 else f"[{host}]:{port}"


def pins_file() -> Path:
    """The keys that `tc devices add` has pinned."""
    return settings().config / "known_hosts"


def known_hosts_files() -> tuple[Path, ...]:
    return (pins_file(), Path.home() / ".ssh" / "known_hosts", Path("/etc/ssh/ssh_known_hosts"))


def known_keys(host: str, port: int, files: Iterable[Path] = ()) -> list[KnownKey]:
    """What the files say of a host; those of `known_hosts_files` unless given. Lines that nobody can read are left out."""
    name = host_name(host, port)
    read = tuple(files) or known_hosts_files()
    return [key for file in read for patterns, key in _lines(file) if matches(patterns, name)]


def _lines(file: Path) -> Iterator[tuple[str, KnownKey]]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", REVOKED):
            continue                                # a certificate authority: certificates are not used here
        try:
            key = base64.b64decode(words[2], validate=True)
        except ValueError:
            continue
        yield words[0], KnownKey(words[1], key, f"{file}:{number}", marker == REVOKED)


def matches(patterns: str, name: str) -> bool:
    """patterns: of one line: "board,192.168.1.*,!192.168.1.7", or hashed "|1|salt|hash"."""
    if patterns.startswith("|1|"):
        try:
            _, _, salt, digest = patterns.split("|")
            wanted = hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest()
            return hmac.compare_digest(wanted, base64.b64decode(digest))
        except ValueError:
            return False
    found = False
    for pattern in patterns.split(","):
        negated, pattern = pattern.startswith("!"), pattern.lstrip("!")
        plain = pattern.replace("[", "[[]") if "[" in pattern else pattern      # [host]:22 is no set of characters
        if fnmatchcase(name.lower(), plain.lower()):
            if negated:
                return False
            found = True
    return found


def pin(host: str, port: int, algorithm: str, key: bytes) -> Path:
    """Trust this key from now on, in place of any that was pinned for the host before. Returns the file it is in."""
    file, name = pins_file(), host_name(host, port)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        known = file.read_text(encoding="utf-8").splitlines()
        lines = [line for line in known if not line.split() or line.split()[0] != name]
    except OSError:
        lines = []
    lines.append(f"{name} {algorithm} {base64.b64encode(key).decode()}")
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(file)
    return file
