"""compose.yaml compared with the settings, the image, and a real broker that uses its configuration."""

import getpass
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import Mosquitto, program

from bridge.settings import Settings, names

ROOT = Path(__file__).parents[1]
FILE, DOCKERFILE, GUIDE = ROOT / "compose.yaml", ROOT / "Dockerfile", ROOT / "docs" / "install.md"
INTERPOLATED = re.compile(r"\$\{(\w+)(:\?|:-)?([^}]*)\}")
KNOWN = {
    *("build", "image", "restart", "read_only", "cap_drop", "security_opt", "env_file", "environment"),
    *("mem_limit", "profiles", "extra_hosts"),
    *("ports", "volumes", "configs"),
}
"""The keys of a service that are used here, from the Compose specification: other keys are refused."""


@pytest.fixture
def project() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


@pytest.fixture
def bridge(project: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = project["services"]["bridge"]
    return found


def image(instruction: str) -> str:
    """The last instruction of this kind in the Dockerfile, with its continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return str(re.findall(rf"^{instruction} +(.*)", text, re.MULTILINE)[-1])


def defaults() -> dict[str, str]:
    """The environment of the image itself."""
    return dict(pair.split("=", 1) for pair in image("ENV").split())


def sources(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for volume in service["volumes"]:
        source, target = volume.split(":")[:2]
        yield source, target


def test_it_has_nothing_that_compose_refuses(project: dict[str, Any]) -> None:
    assert project.keys() == {"services", "configs", "volumes"}
    assert project["services"].keys() == {"bridge", "broker"}
    for service in project["services"].values():
        assert service.keys() <= KNOWN
        assert service["restart"] == "unless-stopped"
        declared = {source for source, _ in sources(service) if not source.startswith(".")}
        assert declared <= project["volumes"].keys()
        assert {given["source"] for given in service.get("configs", [])} <= project["configs"].keys()


def test_every_variable_is_a_setting(bridge: dict[str, Any]) -> None:
    told = bridge["environment"]
    assert told.keys() <= {*names()}
    assert bridge["env_file"] == [{"path": ".env", "required": False}]


def test_what_it_says_makes_good_settings(monkeypatch: pytest.MonkeyPatch, bridge: dict[str, Any]) -> None:
    for name, value in bridge["environment"].items():
        monkeypatch.setenv(name, value)
    assert Settings().http.listen == "0.0.0.0:8080"


def test_it_is_made_for_the_image(bridge: dict[str, Any]) -> None:
    own, port = defaults(), bridge["environment"]["BRIDGE_HTTP__LISTEN"].rpartition(":")[2]
    assert own["BRIDGE_HTTP__LISTEN"].rpartition(":")[2] == port, "the health check asks the same port"
    assert 'CMD ["iqgateway2mqtt", "health"]' in image("HEALTHCHECK")
    assert bridge["ports"] == [f"127.0.0.1:{port}:{port}"]
    places = {target: source for source, target in sources(bridge)}
    assert places == {own["BRIDGE_STATE_DIR"]: "state", "/run/secrets": "./secrets"}
    assert f'["{own["BRIDGE_STATE_DIR"]}"]' == image("VOLUME")
    assert "./secrets:/run/secrets:ro" in bridge["volumes"]


def test_it_is_locked_up(project: dict[str, Any], bridge: dict[str, Any]) -> None:
    assert (bridge["read_only"], bridge["cap_drop"]) == (True, ["ALL"])
    assert bridge["security_opt"] == ["no-new-privileges:true"]
    for service in project["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_its_broker_does_not_clash_with_one_of_the_machine(project: dict[str, Any]) -> None:
    """It starts only if it is asked for, and its port can be moved away."""
    guide = GUIDE.read_text()
    (profile,) = project["services"]["broker"]["profiles"]
    assert f"COMPOSE_PROFILES={profile}" in guide
    assert "profiles" not in project["services"]["bridge"]
    (port,) = project["services"]["broker"]["ports"]
    (name,) = {name for name, *_ in INTERPOLATED.findall(port)}
    assert f"{name}=" in guide
    (machine,) = {host.partition(":")[0] for host in project["services"]["bridge"]["extra_hosts"]}
    assert f"`{machine}`" in guide


def test_the_guide_uses_its_names(bridge: dict[str, Any]) -> None:
    guide = GUIDE.read_text().partition("\n## Container\n")[2].partition("\n## ")[0]
    assert "> .env" in guide or ">> .env" in guide
    assert f"-o {image('USER').partition(':')[0]} /dev/stdin secrets/bridge_gateway__token" in guide
    known = {*names()}
    assert set(re.findall(r"\bBRIDGE_\w+", guide)) <= known
    assert {name.upper() for name in re.findall(r"`(bridge_\w+)`", guide)} <= known
    assert bridge["image"] in guide


class Composed(Mosquitto):
    """A real mosquitto with the lines of compose.yaml. Only address, folder and user differ."""

    def __init__(self, folder: Path, text: str) -> None:
        super().__init__(folder)
        own = text.replace("listener 1883\n", f"listener {self.port} 127.0.0.1\n").replace(
            "/mosquitto/data", str(folder)
        )
        self._config.write_text(f"{own}user {getpass.getuser()}\n")


def test_its_broker_keeps_what_is_retained(project: dict[str, Any], tmp_path: Path) -> None:
    broker = project["services"]["broker"]
    assert broker["configs"] == [{"source": "mosquitto", "target": "/mosquitto/config/mosquitto.conf"}]
    assert ("broker", "/mosquitto/data") in sources(broker)
    with Composed(tmp_path, project["configs"]["mosquitto"]["content"]) as mosquitto:
        at = ("-p", str(mosquitto.port), "-t", "enphase/bridge/state")
        subprocess.run([program("mosquitto_pub"), *at, "-r", "-q", "1", "-m", "online"], check=True)
        mosquitto.stop()
        mosquitto.start()
        asked = [program("mosquitto_sub"), *at, "-C", "1", "-W", "20"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "online\n"
