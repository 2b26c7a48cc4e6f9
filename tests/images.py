"""Builds and runs images without an engine and without a registry. The base is made of Debian's own packages.

Needs root, and Debian's mmdebstrap, buildah, podman and crun.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from machines import alone, debian

TOOLS = ("mmdebstrap", "buildah", "podman", "crun")
BASES = {"docker.io/library/debian:trixie-slim": ("trixie", ("netbase", "tzdata"))}
SLIM = ("doc", "man", "locale", "info")
"""Folders below /usr/share that the slim images do not have."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class ImageStore:
    """Images and layers that are kept between test runs, apart from those of the machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        config = folder / "storage.conf"
        config.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "/run/{folder.name}"\n'
        )
        registries = folder / "registries.conf"
        registries.write_text('unqualified-search-registries = ["docker.io"]\n')
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(config),
            "CONTAINERS_REGISTRIES_CONF": str(registries),
        }

    def command(self, *command: str) -> list[str]:
        """A command with control groups of the newer kind only, because crun does not accept a mixed tree."""
        script = f"mount -t cgroup2 none /sys/fs/cgroup && exec {shlex.join(command)}"
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            self.command(*command), env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return image in self.ask("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").splitlines()

    def base(self, image: str) -> None:
        """An image like the official one: a minimal Debian without documents."""
        if self.has(image):
            return
        suite, packages = BASES[image]
        container = self.ask("buildah", "from", "scratch")
        self.ask("buildah", "add", "-q", container, str(debian(suite, packages)), "/")
        gone = " ".join(f"/usr/share/{name}/*" for name in SLIM)
        clean = f"rm -rf {gone} /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log"
        self.ask("buildah", "run", "--isolation", "chroot", container, "sh", "-c", clean)
        self.ask("buildah", "config", "--cmd", "bash", container)
        self.ask("buildah", "commit", "-q", "--rm", "--squash", container, image)

    def build(self, context: Path, image: str, *arguments: str) -> None:
        """Build an unmodified Dockerfile. Only pip gets this machine's certificates."""
        pip = self._folder / "pip.conf"
        pip.write_text("[global]\ncert = /etc/lent.pem\n")
        lent = [f"--volume={CERTIFICATES}:/etc/lent.pem:ro", f"--volume={pip}:/etc/pip.conf:ro"]
        options = (
            "--isolation=chroot",
            "--format=docker",
            "--pull-never",
            "--layers",
            "--network=host",
            *lent,
            *arguments,
        )
        self.ask("buildah", "bud", *options, "-t", image, str(context))

    def config(self, image: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.ask("buildah", "inspect", "--type", "image", image))
        return cast("Mapping[str, Any]", found["Docker"]["config"])

    def size(self, image: str) -> int:
        return int(json.loads(self.ask("podman", "image", "inspect", image))[0]["Size"])

    def running(self, name: str, image: str, *options: str) -> list[str]:
        """The arguments of a container on this machine's network."""
        limits = os.sysconf("SC_OPEN_MAX")
        fixed = ("--rm", "--network=host", "--cgroups=disabled", "--log-driver=none", "--no-healthcheck")
        bounds = (f"--ulimit=nofile={limits}:{limits}", "--ulimit=nproc=4096:4096")
        return ["podman", "--cgroup-manager=cgroupfs", "run", f"--name={name}", *fixed, *bounds, *options, image]


@contextmanager
def store() -> Iterator[ImageStore]:
    with alone("images") as folder:
        yield ImageStore(folder)
