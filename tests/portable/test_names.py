"""The product touches what a system may lack in one place, and names its files so that every system can keep them."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sae import system
from sae.errors import UsageError
from workbench.workspace import Workspace, new_id

ROOT = Path(__file__).resolve().parents[2]
FLOOR = {  # files that may: each has a second way
    "sae/system.py",
    "workbench/activations/disk/direct_io.py",
    "workbench/activations/disk/aio.py",
    "workbench/activations/foreign/child.py",  # runs by path, without this program
    "workbench/planning/calibrate.py",
}
MODULES = {"fcntl", "resource", "msvcrt", "winreg", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
LACKING = {  # names of os that Windows or macOS have not (Python 3.11)
    *(
        "posix_fallocate",
        "posix_fadvise",
        "preadv",
        "pwritev",
        "pread",
        "pwrite",
        "fchmod",
        "fchown",
        "chown",
        "lchown",
    ),
    *("sched_getaffinity", "sched_setaffinity", "sysconf", "statvfs", "fstatvfs", "fork", "forkpty", "killpg", "nice"),
    *("getuid", "geteuid", "getgid", "getegid", "setsid", "mkfifo", "mknod", "sendfile", "uname", "fdatasync", "sync"),
    *("O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_SYNC", "O_BINARY", "wait", "waitpid"),
    *("getloadavg", "getpgid", "setpgid", "chroot", "fchdir", "copy_file_range", "memfd_create", "eventfd", "splice"),
}
SIGNALS = {"SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "setitimer", "alarm", "pause", "sigwait"}

OF = {"os": LACKING, "signal": SIGNALS}


@cache
def _sources() -> dict[str, ast.Module]:
    files = [p for package in ("sae", "crosscoders", "workbench", "ui") for p in sorted((ROOT / package).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in files}


def _asked(node: ast.AST) -> Iterator[str]:
    """What a piece of syntax asks of the system that one of the three lacks."""
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name in MODULES)
    if isinstance(node, ast.ImportFrom) and node.module in MODULES:
        yield str(node.module)
    match node:
        case ast.Attribute(value=ast.Name(id=module), attr=name) if name in OF.get(module, ()):
            yield f"{module}.{name}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/proc"):
        yield node.value


def test_no_file_asks_for_what_a_system_may_lack():
    found = {name: sorted({a for node in ast.walk(tree) for a in _asked(node)}) for name, tree in _sources().items()}
    strangers = {name: asked for name, asked in found.items() if asked and name not in FLOOR}
    assert not strangers, f"take these through sae.system: {strangers}"
    assert found["sae/system.py"]  # the search finds what there is


def test_text_files_say_their_encoding():
    """Windows' default is not UTF-8."""
    for name, tree in _sources().items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(attr="read_text" | "write_text"), keywords=keywords):
                    assert any(k.arg == "encoding" for k in keywords), f"{name}:{node.lineno}"


REMOVED = {  # modules of the standard library that Python 3.12, 3.13 or 3.14 no longer has
    *(
        "asynchat",
        "asyncore",
        "distutils",
        "imp",
        "smtpd",
        "aifc",
        "audioop",
        "cgi",
        "cgitb",
        "chunk",
        "crypt",
        "imghdr",
    ),
    *("lib2to3", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib"),
    *("uu", "xdrlib", "pkg_resources"),
}
GOING = {
    "utcnow",
    "utcfromtimestamp",
    "getdefaultlocale",
    "get_event_loop_policy",
    "set_event_loop_policy",
    "load_module",
}


def _old(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (a.name for a in names if a.name.partition(".")[0] in REMOVED)
            case ast.ImportFrom(module=str(module), level=0) if module.partition(".")[0] in REMOVED:
                yield module
            case ast.Attribute(attr=name) if name in GOING:
                yield name
            case ast.Try(finalbody=[*last]):  # a SyntaxWarning from 3.14: it swallows what was raised
                yield from ("return in finally" for f in last for n in ast.walk(f) if isinstance(n, ast.Return))


def test_nothing_that_a_later_python_has_no_more():
    planted = ast.parse(
        "import imp\nfrom distutils.core import setup\nx.utcnow()\ntry:\n    pass\nfinally:\n    return 1"
    )
    assert sorted(_old(planted)) == ["distutils.core", "imp", "return in finally", "utcnow"]
    assert {name: found for name, tree in _sources().items() if (found := sorted(_old(tree)))} == {}


def test_sources_compile_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in _sources():
            compile((ROOT / name).read_text(encoding="utf-8"), name, "exec")


@pytest.mark.parametrize("id", ["con", "NUL", "com1.L2R-8x", "Aux", "lpt9", "a.", "mini."])
def test_ids_are_names_every_system_can_keep(id):
    assert system.reserved_name(id)
    with pytest.raises(UsageError, match="Windows"):
        new_id(id)


def test_ids_that_differ_by_case_alone_are_refused(tmp_path):
    workspace = Workspace(tmp_path)
    (tmp_path / "dictionaries" / "Mini.L2R-8x").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"Mini\.L2R-8x"), workspace.create("dictionaries", "mini.L2R-8x"):
        pass
    assert workspace.new_path("dictionaries", "Mini.L2R-8x").is_dir()
