"""The command line itself: help, exit codes, errors, other people's commands, and what it imports."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from toolchain.cli import is_iproute2, main
from toolchain.cli import project as project_module
from toolchain.cli.commands import COMMANDS, EXIT_CODES, tc
from toolchain.core.errors import DeviceError, RegressionError

HEAVY = ("numpy", "onnx", "pydantic", "yaml", "rich", "llvmlite", "paramiko", "ml_dtypes", "onnxruntime")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out[out.index("Commands:"):out.index("Exit codes:")].splitlines()[1:]
            if line.startswith("  ") and line[2] != " "] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_teaches(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example:\n" in out and f"\n    tc {name}" in out
    assert "Exit codes:\n  0" in out
    for code in COMMANDS[name][2]:
        assert EXIT_CODES[code] in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name):
    command = tc.get_command(click.Context(tc), name)
    for option in command.params:
        if isinstance(option, click.Option) and option.name != "form":
            assert option.help, option.name


def test_no_arguments_shows_the_help(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--help"], ["build", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args):
    code = (f"import sys; sys.argv = ['tc', *{args!r}]; from toolchain.cli import main; main(); "
            f"sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_module_and_version():
    done = subprocess.run([sys.executable, "-m", "toolchain", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("tc (toolchain) ")


@pytest.mark.parametrize("args", [
    ["qdisc", "add", "dev", "eth0", "root", "netem"], ["class", "show"], ["filter"], ["action", "ls"], ["actions"],
    ["chain"], ["monitor"], ["exec", "bpf"], ["-s", "qdisc"], ["-d"], ["-p"], ["-b", "file"], ["-batch", "file"],
    ["-j", "qdisc"], ["-V"], ["-statistics"], ["qd"]])
def test_iproute2s_commands_are_pointed_elsewhere(args, capsys):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"'tc {args[0]}' belongs to iproute2's tc" in err and "/usr/sbin/tc" in err


def test_our_words_are_not_iproute2s():
    assert not any(map(is_iproute2, [*COMMANDS, "--help", "-h", "--version"]))


@pytest.mark.parametrize(("args", "message"), [
    (["biuld"], "error: no command 'biuld'\nfix: did you mean 'build'?\n"),
    (["xyzzy"], f"error: no command 'xyzzy'\nfix: the commands are: {', '.join(COMMANDS)}\n"),
    (["build", "--jbos", "2"], "error: No such option '--jbos'."),
    (["build", "-j", "0"], "error: Invalid value for '-j' / '--jobs': 0 is not in the range x>=1."),
    (["explain"], "error: Missing argument 'TASK'.\nfix: see `tc explain --help`\n"),
    (["graph", "--format", "png"], "error: Invalid value for '--format'"),
])
def test_wrong_usage(args, message, capsys):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message)


@pytest.mark.parametrize(("args", "capability"), [
    (["export"], "exporting other forms")])
def test_what_is_not_there_yet_says_so(args, capability, capsys):
    assert main(args) == 2
    assert capsys.readouterr().err.startswith(f"error: not yet: {capability}\nfix: ")


@pytest.mark.parametrize(("error", "code", "screen"), [
    (DeviceError("no route", where="kitchen", fix="switch it on"), 5, "error: kitchen: no route\nfix: switch it on\n"),
    (RegressionError("slower"), 4, "error: slower\n"), (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
    (click.exceptions.Abort(), 130, "error: interrupted\n")])
def test_exit_codes(error, code, screen, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(project_module, "load_deployfile", fail)
    monkeypatch.setattr(project_module, "find_deployfile", lambda *_: project_module.Path("deployfile.yaml"))
    assert main(["plan"]) == code
    assert capsys.readouterr() == ("", screen)


def test_our_own_bugs_are_called_so_and_keep_the_traceback(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("TC_DEBUG", raising=False)
    (tmp_path / "deployfile.yaml").write_text("version: 1\n")
    monkeypatch.setattr(project_module, "load_deployfile", fail)
    assert main(["plan"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert err.startswith("this is a bug in the toolchain: ZeroDivisionError: division by zero\nin: ")
    log = err.splitlines()[-1].removeprefix("log: ")
    text = Path(log).read_text()
    assert text.startswith("tc plan\n\nTraceback") and "ZeroDivisionError" in text


def test_a_wrong_environment_variable(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TC_DEBUG", "much")
    assert main(["gc"]) == 2
    assert capsys.readouterr().err == "error: TC_DEBUG is 'much'\nfix: set it to a number from 0 to 4\n"


@pytest.mark.parametrize(("words", "offered"), [
    ("bu", ["build"]), ("build o", ["one@x86", "one@old", "one", "old"]), ("report two@", ["two@x86", "two@old"]),
    ("explain tw", ["two@x86", "two@old", "two"]), ("init --recipe l", ["light", "language"]), ("build -C /nowhere o", [])])
def test_what_a_shell_offers(words, offered, project, monkeypatch, capsys):
    monkeypatch.setenv("_TC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"tc {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    with pytest.raises(SystemExit):
        main([])
    assert [line.removeprefix("plain,") for line in capsys.readouterr().out.split()] == offered


@pytest.mark.parametrize("args", [["schema"], ["--help"], ["report", "--help"]])
def test_a_full_disk_behind_standard_output(args):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "toolchain", *args], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (1, [
        "error: cannot write: No space left on device", "fix: free space on that disk, then run the same command again"])


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("schema", 0), ("build -C /nowhere", 2), ("doctor --json", 0)])
def test_streams_that_are_closed(closed, command, code):
    done = subprocess.run(f"{sys.executable} -m toolchain {command} {closed}", shell=True, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr and "bug" not in done.stderr


def test_processes_that_we_start_have_the_streams_that_were_closed():
    code = ("import subprocess, sys, toolchain.cli as cli; cli._open_closed_streams(); "
            "sys.exit(subprocess.run(['sh', '-c', 'cat && echo out && echo err >&2']).returncode)")
    assert subprocess.run(f'{sys.executable} -c "{code}" <&- >&- 2>&-', shell=True).returncode == 0


@pytest.mark.parametrize(("number", "screen"), [
    (errno.EACCES, "error: /a/b: not allowed: Permission denied\nfix: let this user write there, or work in another folder"),
    (errno.EROFS, "error: /a/b: not allowed: Read-only file system\n"
                  "fix: let this user write there, or work in another folder"),
    (errno.ENOSPC, "error: /a/b: cannot write: No space left on device\n"
                   "fix: free space on that disk, then run the same command again")])
def test_what_the_system_refuses_is_no_bug(number, screen, monkeypatch, capsys):
    def fail(*_):
        raise OSError(number, os.strerror(number), "/a/b")

    monkeypatch.setattr(project_module, "find_deployfile", fail)
    assert main(["plan"]) == 1
    assert capsys.readouterr().err == f"{screen}\n"


@pytest.mark.parametrize("args", [["schema", "-o"], ["report", "--html"], ["report", "--json"], ["tune", "--export"]])
def test_files_that_cannot_be_written_are_refused_before_the_work(args, tmp_path, capsys):
    assert main([*args, str(tmp_path / "none/file")]) == 2
    assert f"there is no folder '{tmp_path}/none'" in capsys.readouterr().err
    assert main([*args, str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


def test_a_terminal_that_cannot_show_a_name(tmp_path):
    (tmp_path / "deployfile.yaml").write_text("version: 1\nmodels:\n  a: {päth: x}\n")
    done = subprocess.run([sys.executable, "-m", "toolchain", "build", "-C", str(tmp_path)], capture_output=True,
                          env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin", "HOME": str(tmp_path)})
    assert (done.returncode, done.stderr.split(b"\n")[0]) == (2, b"deployfile.yaml:3:7: models.a.p?th: unknown key")


@pytest.mark.parametrize("args", [["schema"], ["--help"], ["doctor", "--json"]])
def test_a_reader_that_has_seen_enough(args):
    """Nothing is said, but the code is not 0: a build, say, was not brought to its end."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "toolchain", *args], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
