"""Runs a Debian with systemd as its first process, for realistic tests of units, installation and disks.

It has a network of its own with only `lo` in it. Needs root, and Debian's mmdebstrap and systemd-container.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from brokers import TIMEOUT_S

SUITE = "bookworm"
SYSTEM_PACKAGES = ("systemd", "systemd-sysv", "ca-certificates", "dbus", "procps", "sudo")
"""Packages that a usual Debian has and a minimal one does not."""
CACHE = Path(os.environ.get("IQGATEWAY2MQTT_CACHE", "/var/cache/iqgateway2mqtt-tests"))
"""A folder for what takes long to make. It is kept between two runs on the same machine."""
CGROUPS = ("systemd", "unified", "")
TOOLS = ("mmdebstrap", "systemd-nspawn", "nsenter")
INSIDE = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


def required(*tools: str) -> None:
    """Skip the test if no machine can be made; in CI, which installs what is needed, fail instead."""
    missing = [tool for tool in tools if shutil.which(tool, path=INSIDE["PATH"]) is None]
    reason = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@contextmanager
def alone(name: str) -> Iterator[Path]:
    """A folder in the cache that one test run has for itself."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def debian(suite: str = SUITE, packages: Sequence[str] = SYSTEM_PACKAGES) -> Path:
    """The files of a fresh Debian. They are made once, which takes a minute, and are never changed."""
    key = hashlib.sha256(" ".join((suite, *packages)).encode()).hexdigest()[:8]
    with alone(f"{suite}-{key}") as place:
        if not place.exists():
            unfinished = place.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            options = ("--quiet", "--variant=minbase", f"--include={','.join(packages)}")
            subprocess.run(["mmdebstrap", *options, suite, unfinished], check=True)
            unfinished.rename(place)
        return place


@contextmanager
def layered(base: Path, folder: Path) -> Iterator[Path]:
    """A cheap copy of the files. Changes stay in memory, and are gone afterwards."""
    upper, work, root = (folder / name for name in ("upper", "work", "root"))
    with mounted("tmpfs", folder):
        for path in (upper, work, root):
            path.mkdir()
        with mounted("overlay", root, f"lowerdir={base},upperdir={upper},workdir={work}"):
            yield root


@contextmanager
def mounted(kind: str, place: Path, options: str = "rw") -> Iterator[Path]:
    subprocess.run(["mount", "-t", kind, kind, "-o", options, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def install(root: Path, script: str, *binds: str) -> None:
    """Run a script in these files as root, with this machine's network, as a person who installs something."""
    own = [name for name in os.environ if name.startswith("PIP_") and name != "PIP_FIND_LINKS"]
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    options = [f"--bind-ro={bind}" for bind in (*binds, certificates) if Path(bind.partition(":")[0]).exists()]
    options += [f"--setenv={name}={os.environ[name]}" for name in own]
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--resolv-conf=bind-host"]
    shell = ["/bin/bash", "-euo", "pipefail", "-s"]
    done = _in_cgroup([*command, *options, "-D", str(root), *shell], script)
    assert done.returncode == 0, f"{script}\n{done.stdout}"


def _in_cgroup(command: Sequence[str], script: str) -> "subprocess.CompletedProcess[str]":
    with cgroup() as enter:
        return subprocess.run(
            [*enter, *command],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@contextmanager
def cgroup() -> Iterator[Sequence[str]]:
    """Make control groups for one machine, so that two do not share them. Returns a prefix for commands."""
    name = f"iqgateway2mqtt-{os.getpid()}-{time.monotonic_ns()}"
    trees = [Path("/sys/fs/cgroup") / tree for tree in CGROUPS]
    groups = [tree / name for tree in trees if (tree / "cgroup.procs").exists()]
    for group in groups:
        group.mkdir()
    try:
        yield ["sh", "-c", 'for g in $0; do echo $$ > $g/cgroup.procs; done; exec "$@"', " ".join(map(str, groups))]
    finally:
        for group in groups:
            for path, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    Path(path).rmdir()


class Machine:
    """A machine that has booted."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root, self._leader = root, leader

    def enter(self, *command: str) -> list[str]:
        """A command that runs another command in the machine, as root."""
        environment = [f"{name}={value}" for name, value in INSIDE.items()]
        return ["nsenter", "-t", str(self._leader), "-a", "-r", "-w", "--", "env", "-i", *environment, *command]

    def in_network(self, *command: str) -> list[str]:
        """A command that runs a program of this system in the network of the machine."""
        return ["nsenter", "-t", str(self._leader), "-n", "--", *command]

    def run(self, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.enter(*command), input=stdin, capture_output=True, text=True, check=False)

    def ask(self, *command: str) -> str:
        """The output of a command that must succeed."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        done = self.run("/bin/bash", "-euo", "pipefail", "-s", stdin=script)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """Boot a machine, and power it off at the end."""
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"]
    command += ["--link-journal=no", "--notify-ready=no", f"--machine=iq{os.getpid()}", "-D", str(root), "--boot"]
    with cgroup() as enter, (root.parent / "console").open("wb") as console:
        nspawn = subprocess.Popen([*enter, *command], stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            yield _up(root, nspawn)
        finally:
            nspawn.terminate()  # this signal powers the machine off
            with suppress(subprocess.TimeoutExpired):
                nspawn.wait(15)
            nspawn.kill()
            nspawn.wait()


def _up(root: Path, nspawn: "subprocess.Popen[bytes]") -> Machine:
    deadline = time.monotonic() + TIMEOUT_S
    while nspawn.poll() is None and time.monotonic() < deadline:
        leaders = subprocess.run(
            ["pgrep", "-P", str(nspawn.pid), "-x", "systemd"], capture_output=True, text=True, check=False
        ).stdout.split()
        if leaders:
            machine = Machine(root, int(leaders[0]))
            if machine.run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}:
                return machine
        time.sleep(0.1)
    raise AssertionError((root.parent / "console").read_text(errors="replace"))


def properties(machine: Machine, unit: str, *names: str) -> Mapping[str, str]:
    """The properties of a unit, all from the same instant."""
    told = machine.ask("systemctl", "show", "-p", ",".join(names), unit)
    return dict(line.partition("=")[::2] for line in told.splitlines())
