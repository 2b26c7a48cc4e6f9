"""The Kubernetes manifest is valid by Kubernetes' own schema, and fits the bridge."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bridge.service.leftovers import names_of
from bridge.settings import GatewaySettings, load, names

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "examples/kubernetes/fleet.yaml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))
VERSIONS = ("1.31", kubernetes_validate.latest_version())


def found(kind: str, name: str = "iqgateway2mqtt") -> dict[str, Any]:
    (one,) = (thing for thing in OBJECTS if (thing["kind"], thing["metadata"]["name"]) == (kind, name))
    return one


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = found("StatefulSet")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: f"{thing['kind']}-{thing['metadata']['name']}")
def test_the_schema_takes_it(thing: dict[str, Any], version: str) -> None:
    with warnings.catch_warnings(record=True) as doubts:
        kubernetes_validate.validate(thing, version, strict=True)
    assert not doubts
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**thing, "metadata": 7}, version, strict=True)


def test_labels_and_selectors_agree() -> None:
    label = {"app.kubernetes.io/name": "iqgateway2mqtt"}
    stateful = found("StatefulSet")["spec"]
    assert {json.dumps(thing["metadata"]["labels"]) for thing in OBJECTS} == {json.dumps(label)}
    assert stateful["selector"]["matchLabels"] == stateful["template"]["metadata"]["labels"] == label
    assert found("Service")["spec"]["selector"] == label
    assert stateful["serviceName"] == found("Service")["metadata"]["name"]


def test_the_parts_of_the_pod_fit_together() -> None:
    (container,) = pod()["containers"]
    claims = {claim["metadata"]["name"] for claim in found("StatefulSet")["spec"]["volumeClaimTemplates"]}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == claims | volumes.keys()
    secrets = {volume["secret"]["secretName"] for volume in volumes.values() if "secret" in volume}
    assert secrets == {thing["metadata"]["name"] for thing in OBJECTS if thing["kind"] == "Secret"}
    (port,) = container["ports"]
    settings = found("ConfigMap")["data"]
    assert settings["BRIDGE_HTTP__LISTEN"] == f"0.0.0.0:{port['containerPort']}"
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    file = Path(settings["BRIDGE_GATEWAYS_FILE"])
    assert str(file.parent) == mounted["gateways"]
    assert file.name in found("Secret", "iqgateway2mqtt-gateways")["stringData"]
    assert mounted["broker"] == "/run/secrets"


def test_the_image_is_the_one_that_is_built() -> None:
    built = (ROOT / "Dockerfile").read_text()
    context = pod()["securityContext"]
    user, state = re.search(r"USER (\d+):(\d+)", built), re.search(r"BRIDGE_STATE_DIR=(\S+)", built)
    assert user is not None
    assert state is not None
    assert [str(context[key]) for key in ("runAsUser", "runAsGroup")] == [*user.groups()]
    (container,) = pod()["containers"]
    assert {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "state"} == {state[1]}


def test_the_bridges_share_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = found("StatefulSet")["spec"]["replicas"]
    data = found("ConfigMap")["data"]
    assert {*data} <= {*names()}
    file = tmp_path / "gateways.json"
    file.write_text(found("Secret", "iqgateway2mqtt-gateways")["stringData"]["gateways.json"])
    for name, text in {**data, "BRIDGE_GATEWAYS_FILE": str(file)}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "secrets"))
    (tmp_path / "secrets").mkdir()
    for name, text in found("Secret")["stringData"].items():
        (tmp_path / "secrets" / name).write_text(text)
    polled: list[GatewaySettings] = []
    for number in range(replicas):
        monkeypatch.setattr("socket.gethostname", lambda number=number: f"iqgateway2mqtt-{number}")
        bridge = load()
        assert bridge.shard == f"{number}/{replicas}"
        assert bridge.mqtt.username == found("Secret")["stringData"]["bridge_mqtt__username"]
        assert names_of(bridge).bridge == f"enphase/bridge/shard-{number}"
        polled += bridge.all_gateways
    assert sorted(gateway.host for gateway in polled) == [entry["host"] for entry in json.loads(file.read_text())]
