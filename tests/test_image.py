"""The container: linted, built from the Dockerfile as it is, and run as compose.yaml runs it."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import free_port
from houses import house
from images import TOOLS, Store, store
from machines import required
from programs import started
from running import until

from bridge import __version__

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
IMAGE = "localhost/iqgateway2mqtt:test"
USER = 10001
NOT_WANTED = ("cc", "gcc", "ld", "make", "pip", "pip3", "curl")
PLACE = "/opt/iqgateway2mqtt"

pytestmark = pytest.mark.skipif(not DOCKERFILE.exists(), reason="this is no checkout of the sources")


def test_dockerfile_is_clean() -> None:
    """hadolint, and what it does not know: nothing is to be fetched before the first line is read."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert not re.search(r"^# *syntax", DOCKERFILE.read_text(), re.MULTILINE | re.IGNORECASE)


@pytest.fixture(scope="module")
def images() -> Iterator[Store]:
    required(*TOOLS)
    with store() as opened:
        for base in set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)):
            opened.base(f"docker.io/library/{base}")
        opened.build(ROOT, IMAGE)
        yield opened


def test_image_says_what_it_is_and_runs_as_nobody(images: Store) -> None:
    config = images.config(IMAGE)
    assert config["User"] == f"{USER}:{USER}"
    assert (config["Entrypoint"], config["Cmd"]) == (["iqgateway2mqtt"], ["run"])
    assert config["Healthcheck"]["Test"] == ["CMD", "iqgateway2mqtt", "health"]
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert labels >= {"title", "description", "licenses", "version", "revision", "base.name"}


def test_image_holds_the_program_and_nothing_to_build_with(images: Store) -> None:
    ask = "import bridge, shutil, sys; print(bridge.__version__, bridge.__file__, *map(shutil.which, sys.argv[1:]))"
    said = images.ask(*images.running("contents", IMAGE, "--entrypoint=python3"), "-c", ask, *NOT_WANTED)
    version, file, *unwanted = said.split()
    assert version == __version__
    assert file.startswith(f"{PLACE}/lib/python3")
    assert set(unwanted) == {"None"}


def test_size_is_as_the_guide_says(images: Store) -> None:
    """Within a tenth: Debian's packages change."""
    guide = (ROOT / "docs" / "install.md").read_text()
    told = re.search(r"(\d+) MB", guide.partition("\n## Container\n")[2])
    assert told
    assert images.size(IMAGE) / 1e6 == pytest.approx(int(told[1]), rel=0.1)


async def test_it_publishes_with_nothing_but_its_state_to_write_to(images: Store, tmp_path: Path) -> None:
    state, secrets = tmp_path / "volume", tmp_path / "secrets"
    for folder in (state, secrets):
        folder.mkdir()
        shutil.chown(folder, USER, USER)
    async with house(tmp_path) as home:
        token = secrets / "bridge_gateway__token"
        token.write_text(home.simulator.token())
        token.chmod(0o600)
        shutil.chown(token, USER, USER)
        port = free_port()
        reach = [f"--env=BRIDGE_GATEWAY__HOST={home.url}", f"--env=BRIDGE_MQTT__URL={home.broker.url}"]
        reach += [f"--env=BRIDGE_HTTP__LISTEN={port}"]  # the usual port may be taken here
        locked = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        disks = [f"--volume={state}:/var/lib/iqgateway2mqtt", f"--volume={secrets}:/run/secrets:ro"]
        name = f"run-{os.getpid()}"
        command = images.running(name, IMAGE, *reach, *locked, *disks)
        async with started(*images.command(*command), env=images.environment) as container:
            await home.settled()
            assert (
                await asyncio.to_thread(images.ask, "podman", "exec", name, "iqgateway2mqtt", "health") == "alive"
            )
            assert await container.stop(signal.SIGTERM) == 0
            await until(lambda: home.seen["enphase/bridge/state"] == "offline")
        assert not [line for line in container.err if "WARNING" in line or "ERROR" in line]
    kept = {path.name: path.stat() for path in state.iterdir()}
    assert f"gateway-{home.serial}.json" in kept
    assert {(stat.st_uid, stat.st_mode & 0o777) for stat in kept.values()} == {(USER, 0o600)}
