"""A cluster of three NATS servers that replicate retained messages and tolerate the loss of any server."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from brokers import TIMEOUT_S, Served, free_port, needed, program

SERVER_COUNT = 3
"""JetStream keeps three copies of each message, of which two are a majority."""


class Member(Served):
    """A server of the cluster."""

    name = "nats-cluster"

    def __init__(self, folder: Path, number: int, own: int, routes: Sequence[int]) -> None:
        folder.mkdir()
        super().__init__(folder)
        self._program = needed("nats-server", "nats-server")
        self._config = folder / "nats.conf"
        others = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        lines = (
            f"server_name: n{number}",
            f"listen: 127.0.0.1:{free_port()}",
            f'jetstream: {{ store_dir: "{folder}/jetstream" }}',
            f"cluster: {{ name: fleet, listen: 127.0.0.1:{own}, routes: [{others}] }}",
            f"mqtt: {{ listen: 127.0.0.1:{self.port} }}",
        )
        self._config.write_text("\n".join([*lines, ""]))

    def command(self) -> list[str]:
        return [self._program, "-c", str(self._config)]

    @property
    def leads(self) -> bool:
        return "JetStream cluster new metadata leader: n" in self.log


class Cluster:
    """The whole cluster. `url` is the setting for a bridge."""

    def __init__(self, folder: Path) -> None:
        ports = [free_port() for _ in range(SERVER_COUNT)]
        self.members = [Member(folder / f"n{number}", number, own, ports) for number, own in enumerate(ports)]

    @property
    def url(self) -> str:
        return ",".join(member.url for member in self.members)

    def at(self, address: str) -> Member:
        """Return the server that a client is connected to."""
        return next(member for member in self.members if member.url == address)

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Self]:
        """Run a cluster whose servers have found each other and elected a leader."""
        cluster = cls(folder)
        with ExitStack() as stack:
            for member in cluster.members:
                stack.enter_context(member)
            deadline = time.monotonic() + TIMEOUT_S
            while not any(member.leads for member in cluster.members):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no leader:\n{cluster.members[0].log}")
                time.sleep(0.1)
            cluster.prepare()
            yield cluster

    def prepare(self) -> None:
        """Publish a first message, so that the servers create their message store. This takes a while."""
        deadline = time.monotonic() + TIMEOUT_S
        where = ("-h", "127.0.0.1", "-p", str(self.members[0].port))
        command = [program("mosquitto_pub"), *where, "-t", "prepare", "-m", "1", "-q", "1"]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no client gets in:\n{self.members[0].log}")
            time.sleep(0.1)
