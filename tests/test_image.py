"""The container image: checked by hadolint, built from the unmodified Dockerfile, and run as in compose.yaml."""

import asyncio
import json
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
from images import TOOLS, ImageStore, store
from machines import required
from programs import started
from running import until

from bridge import __version__

ROOT = Path(__file__).parents[1]
DOCKERFILE, ADDON = ROOT / "Dockerfile", ROOT / "homeassistant-addon"
IMAGE = "localhost/iqgateway2mqtt:test"
CONTAINER_UID = 10001
NOT_WANTED = ("cc", "gcc", "ld", "make", "pip", "pip3", "curl")
PLACE = "/opt/iqgateway2mqtt"


def test_dockerfile_is_clean() -> None:
    """hadolint has no complaint, and no frontend has to be downloaded before the first line is read."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert not re.search(r"^# *syntax", DOCKERFILE.read_text(), re.MULTILINE | re.IGNORECASE)


@pytest.fixture(scope="module")
def images() -> Iterator[ImageStore]:
    required(*TOOLS)
    with store() as opened:
        for base in set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)):
            opened.base(f"docker.io/library/{base}")
        opened.build(ROOT, IMAGE)
        yield opened


def test_image_says_what_it_is_and_runs_as_nobody(images: ImageStore) -> None:
    config = images.config(IMAGE)
    assert config["User"] == f"{CONTAINER_UID}:{CONTAINER_UID}"
    assert (config["Entrypoint"], config["Cmd"]) == (["iqgateway2mqtt"], ["run"])
    assert config["Healthcheck"]["Test"] == ["CMD", "iqgateway2mqtt", "health"]
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert labels >= {"title", "description", "licenses", "version", "revision", "base.name"}


def test_image_holds_the_program_and_nothing_to_build_with(images: ImageStore) -> None:
    ask = "import bridge, shutil, sys; print(bridge.__version__, bridge.__file__, *map(shutil.which, sys.argv[1:]))"
    said = images.ask(*images.running("contents", IMAGE, "--entrypoint=python3"), "-c", ask, *NOT_WANTED)
    version, file, *unwanted = said.split()
    assert version == __version__
    assert file.startswith(f"{PLACE}/lib/python3")
    assert set(unwanted) == {"None"}


def test_size_is_as_the_guide_says(images: ImageStore) -> None:
    """Within a tenth, because Debian's packages change."""
    guide = (ROOT / "docs" / "install.md").read_text()
    told = re.search(r"(\d+) MB", guide.partition("\n## Container\n")[2])
    assert told
    assert images.size(IMAGE) / 1e6 == pytest.approx(int(told[1]), rel=0.1)


async def test_it_publishes_with_nothing_but_its_state_to_write_to(images: ImageStore, tmp_path: Path) -> None:
    state, secrets = tmp_path / "volume", tmp_path / "secrets"
    for folder in (state, secrets):
        folder.mkdir()
        shutil.chown(folder, CONTAINER_UID, CONTAINER_UID)
    async with house(tmp_path) as home:
        token = secrets / "bridge_gateway__token"
        token.write_text(home.simulator.token())
        token.chmod(0o600)
        shutil.chown(token, CONTAINER_UID, CONTAINER_UID)
        port = free_port()
        reach = [f"--env=BRIDGE_GATEWAY__HOST={home.url}", f"--env=BRIDGE_MQTT__URL={home.broker.url}"]
        reach += [f"--env=BRIDGE_HTTP__LISTEN={port}"]  # the usual port may be in use on this machine
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
    assert {(stat.st_uid, stat.st_mode & 0o777) for stat in kept.values()} == {(CONTAINER_UID, 0o600)}


# The add-on's image

ADDON_IMAGE = "localhost/iqgateway2mqtt-addon:test"


@pytest.fixture(scope="module")
def addon(images: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """The image that the supervisor builds, with a wheel of these sources in place of a release."""
    folder = tmp_path_factory.mktemp("addon") / "folder"
    shutil.copytree(ADDON, folder)
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", str(ROOT)]
    subprocess.run(make, check=True)
    (wheel,) = folder.glob("*.whl")
    images.build(
        folder, ADDON_IMAGE, f"--build-arg=SOURCE=./{wheel.name}", f"--build-arg=BUILD_VERSION={__version__}"
    )
    return images


async def test_the_add_on_publishes_as_a_user_of_its_own(addon: ImageStore, tmp_path: Path) -> None:
    """Options and data are as the supervisor makes them: root's."""
    data = tmp_path / "data"
    data.mkdir()
    async with house(tmp_path) as home:
        chosen = {
            "gateway": {"host": home.url, "token": home.simulator.token()},
            "mqtt": {"url": home.broker.url},
            "more": [],
        }
        (data / "options.json").write_text(json.dumps(chosen))
        (data / "options.json").chmod(0o600)
        name = f"addon-{os.getpid()}"
        command = addon.running(name, ADDON_IMAGE, f"--volume={data}:/data")
        async with started(*addon.command(*command), env=addon.environment) as container:
            await home.settled()
            ask = ("podman", "exec", name, "grep", "Uid", "/proc/1/status")
            about = await asyncio.to_thread(addon.ask, *ask)
            assert about.split() == ["Uid:", *["10001"] * 4]
            assert await container.stop(signal.SIGTERM) == 0
        assert not [line for line in container.err if "WARNING" in line or "ERROR" in line]
    kept = {path.name: path.stat().st_uid for path in (data / "state").iterdir()}
    assert f"gateway-{home.serial}.json" in kept
    assert set(kept.values()) == {CONTAINER_UID}
