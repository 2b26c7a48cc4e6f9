"""The HTTP listener: its answers to probes, Prometheus and people, and its limits for strangers."""

import asyncio
import gc
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from brokers import Mosquitto, free_port
from houses import House, house, housed
from programs import BRIDGE_COMMAND, started
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from running import until
from test_secrets import BROKER_USER, MQTT, STATES, guarded, problem, secrets, watched

from bridge.commands.run import run_with_listener
from bridge.http_server import HttpServer, Receive, Scope, Send, ServerLimits
from bridge.model import Reading
from bridge.records import ENERGY, POWER, measurement
from bridge.service.bridge import Bridge
from bridge.service.status import BrokerStatus, GatewayStatus, SourceStatus, Status
from bridge.settings import HttpSettings
from bridge.simulator.gateway import INFO_PATH, LIVEDATA_PATH, READINGS_PATH
from bridge.web import PAGE_LIMITS, listen
from bridge.web.app import SECURITY_HEADERS, StatusPage
from bridge.web.metrics import METRICS, MOST_INVERTERS

__all__ = ["guarded"]

PATHS = ("/", "/page.css", "/page.js", "/icon.svg", "/healthz", "/readyz", "/metrics", "/status.json")
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
BROKER = BrokerStatus("mqtt://broker:1883", True, "5", connections=3, sent=1234, topics=567, unsent=8)
GATEWAY = GatewayStatus(
    host="192.0.2.7",
    address="192.0.2.7",
    serial="122301003111",
    name=None,
    firmware="D8.3.5167",
    known=True,
    online=True,
    problem=None,
    needs_token=True,
    token_expires=NOON + timedelta(days=7.25),
    token_role="owner",
    counters_held=2,
    sources=(),
    flows_fresh=False,
    readings=(),
)
STATUS = Status("1.2.3", NOON - timedelta(hours=5), NOON, (), BROKER, (GATEWAY,))


def asking(app: StatusPage) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def answer(status: Status, path: str, **headers: str) -> httpx.Response:
    async with asking(StatusPage(lambda: status)) as client:
        return await client.get(path, headers=headers)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """The samples by name and values of the labels."""
    return {
        (sample.name.removeprefix("iqgateway2mqtt_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def going(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def at(port: int, kept: int = 1) -> AsyncIterator[httpx.AsyncClient]:
    """A client that keeps so many connections, once the listener is there."""
    limits = httpx.Limits(max_keepalive_connections=kept)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as client:
        while True:
            with suppress(httpx.ConnectError):
                await client.get("/healthz")
                break
            await asyncio.sleep(0.1)
        yield client


@asynccontextmanager
async def served(home: House, **sections: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A bridge with its listener, and a client.

    The client keeps no connection: the listener may close one that rests just when a request is sent on it.
    """
    port = free_port()
    settings = home.settings(http={"listen": f"127.0.0.1:{port}"}, **sections)
    async with going(run_with_listener(settings, Bridge(settings))), at(port, kept=0) as client:
        yield client


async def came(client: httpx.AsyncClient, path: str, wanted: Callable[[httpx.Response], bool]) -> httpx.Response:
    """The first answer that meets the condition."""
    found: httpx.Response | None = None
    for _ in range(600):
        found = await client.get(path)
        if wanted(found):
            return found
        await asyncio.sleep(1)
    raise AssertionError(f"{path} stays at {found.text if found is not None else None}")


# Answers


@pytest.mark.hasty
@pytest.mark.may_log("no connection to the gateway")
async def test_ready_says_why_not(tmp_path: Path) -> None:
    """Broker and gateway fail and come back, alone and together. The bridge is alive all the time."""
    async with house(tmp_path) as home, served(home) as client:
        told = (await came(client, "/readyz", lambda found: found.status_code == 200)).json()
        assert told["ready"] is True
        assert (told["reasons"], told["warnings"]) == ([], [])
        assert told["broker"] == {"address": home.broker.url, "connected": True}
        (gateway,) = told["gateways"]
        assert (gateway["host"], gateway["serial"], gateway["answering"]) == (home.url, home.serial, True)
        assert (gateway["token"]["role"], round(gateway["token"]["days"])) == ("owner", 365)
        await home.unplug()
        told = (await came(client, "/readyz", lambda found: found.status_code == 503)).json()
        assert told["gateways"][0]["answering"] is False
        assert [home.url in reason for reason in told["reasons"]] == [True]
        assert (await client.get("/healthz")).json() == {"alive": True, "stuck": []}
        await home.plug()
        await came(client, "/readyz", lambda found: found.status_code == 200)


@pytest.mark.hasty
@pytest.mark.may_log("broker|connection|Connection")
async def test_a_broker_that_is_gone_is_a_reason(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        async with housed(tmp_path, broker, "three-phase") as home, served(home) as client:
            await came(client, "/readyz", lambda found: found.status_code == 200)
            broker.stop()
            told = (await came(client, "/readyz", lambda found: found.status_code == 503)).json()
            assert [
                reason.startswith(f"no connection to the broker {broker.url}") for reason in told["reasons"]
            ] == [True]
            told = (await came(client, "/readyz", lambda found: "no broker listens" in found.text)).json()
            assert told["broker"] == {"address": broker.url, "connected": False}
            metrics = samples((await client.get("/metrics")).text)
            assert (metrics["broker_connected",], metrics["ready",]) == (0, 0)
            broker.start()
            await came(client, "/readyz", lambda found: found.status_code == 200)
            await came(client, "/metrics", lambda found: samples(found.text)["broker_connections_total",] == 2)


@pytest.mark.hasty
@pytest.mark.may_log("token")
async def test_a_gateway_without_a_token_is_a_reason(tmp_path: Path) -> None:
    async with house(tmp_path) as home, served(home, gateway={}) as client:
        found = await came(client, "/readyz", lambda found: "there is no token" in found.text)
        assert found.status_code == 503
        (gateway,) = found.json()["gateways"]
        assert gateway["answering"] is False
        assert gateway["token"] == {"expires": None, "days": None, "role": None, "set": False}


@pytest.mark.hasty
@pytest.mark.may_log(".")
@pytest.mark.parametrize("token", ["expired", "revoked"])
async def test_a_token_that_is_of_no_use_is_told_as_what_it_is(tmp_path: Path, token: str) -> None:
    """One that is set is not missing, and a gateway that refuses it answers."""
    async with house(tmp_path) as home:
        text = home.simulator.token(exp=int(home.clock()) - 60) if token == "expired" else home.simulator.token()
        if token == "revoked":
            home.simulator.revoke_tokens()
        async with served(home, gateway={"token": text}) as client:
            found = await came(client, "/status.json", lambda found: found.json()["gateways"][0]["refusing"])
            (gateway,) = found.json()["gateways"]
            assert (gateway["online"], gateway["asked"], gateway["token"]["set"]) == (False, True, True)
            assert "token" in gateway["problem"]


@pytest.mark.hasty
@pytest.mark.may_log(".")
async def test_freshness_is_what_the_availability_topics_say(tmp_path: Path) -> None:
    """On the page and for Prometheus; a source of an offline gateway is not fresh."""

    def agree(page: dict[str, Any], metrics: Mapping[tuple[str, ...], float]) -> bool:
        (gateway,) = page["gateways"]
        topics = {name: text == "online" for name, text in home.availability.items() if text and name != "site"}
        on_page = {source["name"]: source["fresh"] for source in gateway["sources"] if source["fresh"] is not None}
        in_metrics = {key[2]: bool(value) for key, value in metrics.items() if key[0] == "source_fresh"}
        return on_page == topics == in_metrics and gateway["fresh"] == (home.availability["site"] == "online")

    async def looked(client: httpx.AsyncClient) -> tuple[dict[str, Any], Mapping[tuple[str, ...], float]]:
        page: dict[str, Any] = (await client.get("/status.json")).json()
        return page, samples((await client.get("/metrics")).text)

    async with house(tmp_path) as home, served(home) as client:
        await home.settled()
        await came(client, "/readyz", lambda found: found.status_code == 200)
        assert agree(*await looked(client))
        await home.unplug()
        await until(lambda: set(home.availability.values()) == {"offline"})
        page, metrics = await looked(client)
        assert agree(page, metrics)
        (gateway,) = page["gateways"]
        assert [source["name"] for source in gateway["sources"] if source["fresh"]] == []
        read = datetime.fromisoformat(gateway["at"])
        assert timedelta(0) < datetime.fromisoformat(page["now"]) - read
        await home.plug()
        await came(client, "/readyz", lambda found: found.status_code == 200)
        await until(lambda: set(home.availability.values()) == {"online"})
        assert agree(*await looked(client))


@pytest.mark.hasty
@pytest.mark.may_log(".")
async def test_a_source_that_fails_says_why(tmp_path: Path) -> None:
    """With the cause that the log has, and until it answers again."""
    async with house(tmp_path) as home, served(home) as client:
        home.simulator.faults.add(LIVEDATA_PATH, "502")

        def error(found: httpx.Response) -> str | None:
            sources = {source["name"]: source["error"] for source in found.json()["gateways"][0]["sources"]}
            text: str | None = sources["livedata"]
            return text

        found = await came(client, "/status.json", lambda found: error(found) is not None)
        assert "502" in (error(found) or "")
        home.simulator.faults.clear()
        await came(client, "/status.json", lambda found: error(found) is None)


@pytest.mark.hasty
@pytest.mark.may_log(".")
async def test_metrics_count_what_the_gateway_was_asked(tmp_path: Path) -> None:
    async with house(tmp_path) as home, served(home) as client:
        home.simulator.faults.add(LIVEDATA_PATH, "502")  # is tried again at once
        await until(lambda: home.simulator.count(READINGS_PATH) > 3)
        await came(client, "/readyz", lambda found: found.status_code == 200)
        before = {path: home.simulator.count(path) for path in (READINGS_PATH, LIVEDATA_PATH)}
        found = samples((await client.get("/metrics")).text)
        after = {path: home.simulator.count(path) for path in (READINGS_PATH, LIVEDATA_PATH)}
        serial = home.serial
        assert before[READINGS_PATH] - 1 <= found["requests_total", serial, "readings"] <= after[READINGS_PATH] + 1
        assert found["polls_total", serial, "readings"] == found["poll_seconds_count", serial, "readings"]
        assert found["poll_failures_total", serial, "readings"] == 0
        assert found["requests_total", serial, "livedata"] > found["polls_total", serial, "livedata"] > 0
        assert found["poll_failures_total", serial, "livedata"] == found["polls_total", serial, "livedata"]
        assert found["poll_seconds_sum", serial, "livedata"] > 0
        assert found["poll_seconds_sum", serial, "readings"] >= found["answer_seconds", serial, "readings"] > 0
        assert found["source_fresh", serial, "readings"] == 1
        assert found["source_fresh", serial, "livedata"] == 0
        assert ("answer_seconds", serial, "livedata") not in found
        assert found["outbox_topics",] > 400
        assert found["messages_sent_total",] > 400
        assert found["gateway_info", "D8.3.5167", serial, home.url, serial] == 1
        assert found["process_resident_memory_bytes",] > 1e6
        truth = home.simulator.truth()
        assert found["site_power_watts", "solar", serial] == pytest.approx(truth.site.solar.power, abs=0.01)
        assert found["site_power_watts", "grid", serial] == pytest.approx(truth.site.grid.power, abs=0.01)
        shown = float(home.topic("site/grid/energy_imported") or 0)
        assert found["site_energy_joules_total", "grid", serial, "imported"] == pytest.approx(3600 * shown)
        powers = {key[2]: value for key, value in found.items() if key[0] == "inverter_power_watts"}
        assert powers == {
            topic.split("/")[3]: float(text)
            for topic, text in home.seen.items()
            if re.fullmatch(r"enphase/\d+/inverter/\d+/power", topic) and text != "None"
        }
        counted = {key[2] for key in found if key[0] == "inverter_energy_joules_total"}
        assert counted >= powers.keys() != set()


async def test_every_metric_is_told_and_nothing_is_made_up() -> None:
    text = (await answer(STATUS, "/metrics")).text
    told = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE iqgateway2mqtt_")}
    assert told == {metric.full_name + ("_total" if metric.kind == "counter" else "") for metric in METRICS}
    found = samples(text)
    assert found["token_days", GATEWAY.serial or ""] == 7.25
    assert found["counters_held", GATEWAY.serial or ""] == 2
    assert found["outbox_unsent",] == 8
    assert not [key for key in found if key[0] == "site_power_watts"]


async def test_metrics_tell_gateways_apart_even_where_one_is_there_twice() -> None:
    """Prometheus refuses a whole scrape that has one sample twice."""
    unknown = replace(GATEWAY, host="192.0.2.9", serial=None, online=False)
    status = replace(STATUS, gateways=(GATEWAY, replace(GATEWAY, host="192.0.2.8"), unknown))
    found = samples((await answer(status, "/metrics")).text)
    assert {key[1]: value for key, value in found.items() if key[0] == "gateway_online"} == {
        "122301003111": 1,
        "192.0.2.8": 1,
        "192.0.2.9": 0,
    }


async def test_metrics_of_a_fleet_are_bounded() -> None:
    """A counter of an inverter comes from its gateway, so that a made-up list of inverters has an end, too."""
    power = measurement("power", POWER)
    many = tuple(Reading(f"inverter/{unit}", None, power, unit) for unit in range(MOST_INVERTERS + 9))
    found = samples((await answer(replace(STATUS, gateways=(replace(GATEWAY, inverters=many),)), "/metrics")).text)
    assert len([key for key in found if key[0] == "inverter_power_watts"]) == MOST_INVERTERS


BASE_UNITS = {"seconds", "bytes", "watts", "joules"}
"""Those of Prometheus that we use; days are what people count tokens in, and what docs/health.md's alert has."""
OTHER_UNITS = {"milliseconds", "minutes", "hours", "kilobytes", "kilowatts", "percent", "ms", "kb", "kw"}
ENDINGS = {"counter": ("_total",), "gauge": ("",), "summary": ("_count", "_sum")}
LIVELY = replace(
    STATUS,
    gateways=(
        replace(
            GATEWAY,
            flows_fresh=True,
            sources=(SourceStatus("readings", "good", True, 5.0, 2.5, 0.25, 7, 9, 1, 3.5),),
            readings=(
                Reading("site/solar", None, measurement("power", POWER), 1234.5),
                Reading("site/solar", None, measurement("energy_lifetime", ENERGY), 1500),
            ),
            inverters=(
                *(Reading("inverter/1", None, measurement("power", POWER), value) for value in (250, None)),
                Reading("inverter/1", None, measurement("energy_lifetime", ENERGY), 2.5),
            ),
        ),
        replace(GATEWAY, host='odd "host\\', address='odd "host\\\n', serial=None),
    ),
)


@pytest.mark.parametrize(
    ("accept", "parse"),
    [("text/plain", text_string_to_metric_families), ("application/openmetrics-text; version=1.0.0", openmetrics)],
)
async def test_metrics_are_as_prometheus_wants_them(accept: str, parse: Callable[[str], Iterable[Family]]) -> None:
    """Names and units follow its rules, all have help, none occurs twice, and no label is cut by its content."""
    found = await answer(LIVELY, "/metrics", accept=accept)
    assert found.headers["content-type"].startswith(accept.partition(";")[0])
    families = [family for family in parse(found.text) if family.name.startswith("iqgateway2mqtt_")]
    assert {family.name for family in families} == {metric.full_name for metric in METRICS}
    assert len(families) == len(METRICS)
    seen: set[tuple[object, ...]] = set()
    for family in families:
        assert family.documentation
        words = set(family.name.split("_"))
        assert not words & OTHER_UNITS
        assert {word for word in words if word in BASE_UNITS} <= {family.name.rpartition("_")[2]}
        assert family.samples
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in seen
            seen.add(key)
            assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z]", sample.name)
            assert sample.name.removeprefix(family.name) in ENDINGS[family.type]
            assert not {"le", "quantile", "job", "instance"} & sample.labels.keys()
    odd = {sample.labels["host"] for family in families for sample in family.samples if "host" in sample.labels}
    assert odd == {"192.0.2.7", 'odd "host\\\n'}


async def test_a_gateway_that_moved_is_shown_where_it_is() -> None:
    status = replace(STATUS, gateways=(replace(GATEWAY, host="envoy.local", address="192.0.2.50"),))
    found = samples((await answer(status, "/metrics")).text)
    assert found["gateway_info", "D8.3.5167", "122301003111", "192.0.2.50", "122301003111"] == 1
    (gateway,) = (await answer(status, "/status.json")).json()["gateways"]
    assert (gateway["host"], gateway["address"]) == ("envoy.local", "192.0.2.50")


async def test_metrics_speak_openmetrics_to_who_asks_for_it() -> None:
    found = await answer(STATUS, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert found.headers["content-type"].startswith("application/openmetrics-text")
    assert found.text.endswith("# EOF\n")


async def test_a_token_that_ends_soon_is_a_warning_and_no_reason() -> None:
    status = replace(STATUS, gateways=(replace(GATEWAY, problem="the token expires on 2026-12-02"),))
    found = await answer(status, "/readyz")
    assert (found.status_code, found.json()["reasons"]) == (200, [])
    assert found.json()["warnings"] == ["gateway 192.0.2.7: the token expires on 2026-12-02"]


# Allowed clients and requests


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_keeps_the_page_to_itself(path: str) -> None:
    found = await answer(STATUS, path)
    assert found.status_code == 200
    assert {name: found.headers[name] for name in SECURITY_HEADERS} == dict(SECURITY_HEADERS)
    assert "unsafe" not in found.headers["content-security-policy"]
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize("name", ["index.html", "page.css", "page.js", "icon.svg"])
def test_the_page_asks_for_nothing_from_elsewhere(name: str) -> None:
    text = Path(sys.modules[StatusPage.__module__].__file__ or "").with_name("page").joinpath(name).read_text()
    assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    assert not [word for word in ("style=", "onclick", "innerHTML", "@import", "eval(") if word in text]


@pytest.mark.parametrize(
    "host",
    [
        "localhost:8080",
        "127.0.0.1",
        "192.0.2.7:8080",
        "[::1]:8080",
        "[2001:db8::7]",
        "raspberrypi",
        "raspberrypi.local.",
        "Bridge.Home.Arpa:8080",
        "enphase.example.org",
        "enphase.example.org:443",
    ],
)
async def test_names_of_this_network_may_be_used(host: str) -> None:
    async with asking(StatusPage(lambda: STATUS, ["Enphase.example.org"])) as client:
        assert (await client.get("/status.json", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "local.evil.example"]
)
@pytest.mark.parametrize("path", PATHS)
async def test_other_names_are_refused(host: str, path: str) -> None:
    """A website whose name points to our address must not read our answers."""
    found = await answer(STATUS, path, host=host)
    assert found.status_code == 421
    assert "BRIDGE_HTTP__HOSTS" in found.text


async def test_nothing_can_be_changed() -> None:
    async with asking(StatusPage(lambda: STATUS)) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            found = await client.request(method, "/healthz", content=b"x")
            assert (found.status_code, found.headers["allow"]) == (405, "GET, HEAD")
            assert found.headers["connection"] == "close"
        head = await client.head("/status.json")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 100
        for path in ("/page", "/../../etc/passwd", "/page/page.js", "/page.js/"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.expects_log("can't answer a request to /status.json")
async def test_a_fault_of_ours_is_told_once(warned: list[str]) -> None:
    broken = replace(STATUS, gateways=(replace(GATEWAY, sources=None),))  # type: ignore[arg-type] # that is the fault
    async with asking(StatusPage(lambda: broken)) as client:
        for _ in range(3):
            found = await client.get("/status.json")
            assert (found.status_code, found.text) == (500, "The bridge failed to answer; its log says why.\n")
    assert len(warned) == 1


# Sockets


@asynccontextmanager
async def listening(port: int, status: Status = STATUS) -> AsyncIterator[None]:
    settings = HttpSettings(listen=f"127.0.0.1:{port}")
    async with going(listen(settings, lambda: status)), at(port):
        yield


async def said(port: int, data: bytes) -> bytes:
    """The answer until the other side closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer), suppress(ConnectionResetError):
        writer.write(data)
        return await reader.read()
    return b""


@pytest.mark.hasty
async def test_who_says_nothing_or_not_all_is_hung_up_on() -> None:
    port = free_port()
    async with listening(port):
        for data in (b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: "):
            async with asyncio.timeout(600):
                assert await said(port, data) == b""
        asked = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        async with asyncio.timeout(600):
            assert (await said(port, asked)).count(b"200 OK") == 1
            assert (await said(port, asked + b"GET /healthz HTTP/1.1\r\nX: ")).count(b"HTTP/1.1 ") == 1


async def test_a_connection_does_not_outlive_its_listener() -> None:
    """Whatever its state when the listener ends: a bridge that has stopped must not answer with an old status."""
    port = free_port()
    for steps in range(1, 6):
        async with listening(port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            late = socket.create_connection(("127.0.0.1", port))
            for _ in range(steps):
                await asyncio.sleep(0)
        async with asyncio.timeout(60):
            with closing(writer), late, suppress(ConnectionError):
                assert await reader.read() == b""
                late.setblocking(False)
                late.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                assert await asyncio.get_running_loop().sock_recv(late, 1000) == b""


async def hung_up(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has ended the connection; it says nothing else."""
    try:
        async with asyncio.timeout(0.2):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def connected(port: int, *clients: str) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection from each of these addresses of this machine, in this order, which says nothing."""
    return [
        await asyncio.open_connection("127.0.0.1", port, local_addr=(client, 0), limit=2**20) for client in clients
    ]


async def test_the_oldest_silent_connection_of_an_address_gives_way() -> None:
    """A silent one counts from its last answer. Connections of other addresses stay."""
    assert PAGE_LIMITS.per_client == 8
    port, asked = free_port(), b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    async with listening(port):
        (other, first, *rest) = await connected(port, "127.0.0.7", *["127.0.0.8"] * 8)
        first[1].write(asked)
        assert (await first[0].readuntil(b"\n")).startswith(b"HTTP/1.1 200")
        await first[0].read(4096)
        more = await connected(port, *["127.0.0.8"] * 3)
        assert [await hung_up(reader) for reader, _ in (*rest, *more)] == [True] * 3 + [False] * 7
        other[1].write(asked)
        first[1].write(asked)
        for reader, writer in (other, first):
            assert (await reader.readuntil(b"\n")).startswith(b"HTTP/1.1 200")
            writer.close()
        for _, writer in (*rest, *more):
            writer.close()


async def test_who_has_most_connections_gives_way_first() -> None:
    """Above the limit of all, a client with a single connection keeps it as long as another has several.

    `listening` has a single one, too, which it keeps open.
    """
    assert PAGE_LIMITS.connections == 32
    port = free_port()
    async with listening(port):
        crowd = [address for number in range(1, 5) for address in [f"127.0.1.{number}"] * 8]
        (single, *others) = await connected(port, "127.0.0.9", *crowd[:-2], "127.0.0.10", "127.0.0.11")
        closed = [await hung_up(reader) for reader, _ in others]
        assert (sum(closed), closed[0], closed[8]) == (2, True, True)  # one each of two with eight
        single[1].write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await single[0].readuntil(b"\n")).startswith(b"HTTP/1.1 200")
        for _, writer in (single, *others):
            writer.close()


async def test_who_is_being_answered_does_not_give_way() -> None:
    answers = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await answers.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    server = HttpServer(app, ServerLimits(keep_alive=60, per_client=2))
    _, port = await server.start("127.0.0.1", 0)
    try:
        (asking,) = await connected(port, "127.0.0.8")
        asking[1].write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        silent = await connected(port, *["127.0.0.8"] * 3)
        assert [await hung_up(reader) for reader, _ in silent] == [True, True, False]
        answers.set()
        assert (await asking[0].readuntil(b"\n")).startswith(b"HTTP/1.1 204")
        for _, writer in (asking, *silent):
            writer.close()
    finally:
        await server.aclose()


@pytest.mark.parametrize("turns", range(5))
def test_a_server_that_ends_closes_what_it_accepted(turns: int) -> None:
    """Whenever it ends, and though its loop ends with it. An unclosed socket is an error of this test."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("nobody asks")

    async def serve_briefly(client: socket.socket) -> None:
        server = HttpServer(app, ServerLimits(keep_alive=60))
        client.connect(await server.start("127.0.0.1", 0))
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.aclose()

    with socket.socket() as client:
        asyncio.run(serve_briefly(client))
        client.settimeout(10)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    gc.collect()


async def test_large_requests_are_refused_unread() -> None:
    assert PAGE_LIMITS.head
    port = free_port()
    async with listening(port):
        head = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"x" * PAGE_LIMITS.head * 2
        assert (await said(port, head)).startswith((b"HTTP/1.1 4", b""))
        body = b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1_000_000
        assert (await said(port, body)).startswith((b"HTTP/1.1 405", b""))
        assert (await said(port, b"\x16\x03\x01 nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        async with at(port) as client:
            assert (await client.get("/healthz")).status_code == 200


@pytest.mark.hasty
@pytest.mark.expects_log("no status page at 127.0.0.1:\\d+: Address already in use; the bridge goes on without it")
async def test_a_port_that_is_taken_takes_the_bridge_nothing(tmp_path: Path, warned: list[str]) -> None:
    port = free_port()
    other = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    async with house(tmp_path) as home:
        settings = home.settings(http={"listen": f"127.0.0.1:{port}"})
        async with going(run_with_listener(settings, Bridge(settings))) as task:
            await home.settled()
            assert not task.done()
            assert len(warned) == 1
            other.close()
            async with at(port) as client:
                await came(client, "/readyz", lambda found: found.status_code == 200)


# The program


def environment(home: House, port: int, **more: str) -> Mapping[str, str]:
    return {
        **home.environment,
        "BRIDGE_HTTP__LISTEN": str(port),
        **more,
    }


async def health(listen: str) -> tuple[int, list[str]]:
    async with started(*BRIDGE_COMMAND, "health", env={"BRIDGE_HTTP__LISTEN": listen}) as program:
        return await program.ended(), [*program.out, *program.err]


async def test_health_asks_the_running_service(tmp_path: Path) -> None:
    port = free_port()
    async with house(tmp_path) as home:
        assert await health(str(port)) == (69, [f"no answer at 127.0.0.1:{port}: Connection refused"])
        async with started(*BRIDGE_COMMAND, "run", env=environment(home, port)) as program:
            await until(lambda: any("status page at" in line for line in program.err))
            for listen_at in (str(port), f"0.0.0.0:{port}", f"localhost:{port}"):
                assert await health(listen_at) == (0, ["alive"])
            program.process.send_signal(signal.SIGSTOP)
            assert await health(str(port)) == (69, [f"no answer at 127.0.0.1:{port}: timed out"])
            program.process.send_signal(signal.SIGCONT)
            assert await program.stop() == 0
        assert [line for line in program.err if "status page" in line] == [
            line for line in program.err if line.endswith(f"status page at http://127.0.0.1:{port}/")
        ]


async def test_silent_connections_keep_no_health_check_out(tmp_path: Path) -> None:
    """Of one client with the same address as the health check, then of as many addresses as there are places."""
    port = free_port()
    async with house(tmp_path) as home, started(*BRIDGE_COMMAND, "run", env=environment(home, port)) as program:
        await until(lambda: any("status page at" in line for line in program.err))
        crowd = await connected(port, *["127.0.0.1"] * 48)
        assert await health(str(port)) == (0, ["alive"])
        crowd += await connected(port, *(f"127.0.1.{number}" for number in range(1, 49)))
        assert await health(str(port)) == (0, ["alive"])
        for _, writer in crowd:
            writer.close()
        assert await program.stop() == 0


async def test_a_part_that_is_stuck_is_told() -> None:
    port, stuck = free_port(), ("the sender", "the poller of envoy.local")
    async with listening(port, replace(STATUS, stuck=stuck)):
        assert await health(str(port)) == (69, ["stuck: the sender, the poller of envoy.local"])
        async with at(port) as client:
            found = await client.get("/healthz")
            assert (found.status_code, found.json()) == (503, {"alive": False, "stuck": [*stuck]})
            assert samples((await client.get("/metrics")).text)["alive",] == 0


async def test_changed_settings_move_the_listener(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    file = tmp_path / "bridge.toml"

    def say(port: int) -> None:
        file.write_text(
            f'state_dir = "{tmp_path}/state"\n[http]\nlisten = {port}\n[mqtt]\nurl = "{home.broker.url}"\n'
        )

    async with house(tmp_path) as home:
        say(first)
        more = {"BRIDGE_GATEWAY__HOST": home.url, "BRIDGE_GATEWAY__TOKEN": home.simulator.token()}
        async with started(*BRIDGE_COMMAND, "run", env={"BRIDGE_CONFIG": str(file), **more}) as program:
            for port in (first, second, second):
                say(port)
                known = sum("status page at" in line for line in program.err)
                if known:
                    program.process.send_signal(signal.SIGHUP)
                await until(
                    partial(lambda known: sum("status page at" in line for line in program.err) > known, known)
                )
                assert await health(str(port)) == (0, ["alive"])
            assert (await health(str(first)))[0] == 69
            assert await program.stop() == 0
        assert not [line for line in program.err if "ERROR" in line]


async def test_health_is_not_taken_in_by_another_program() -> None:
    async def other(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await health(str(port)) == (69, [f"another program answers at 127.0.0.1:{port}"])


async def test_health_without_a_listener_says_what_to_set() -> None:
    code, (line,) = await health("")
    assert code == 78
    assert "BRIDGE_HTTP__LISTEN: not set" in line


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("missing", ["prometheus_client", "uvicorn"])
def test_a_missing_extra_is_one_line(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from bridge.commands import main; sys.exit(main(['run']))"
    done = python(code, BRIDGE_HTTP__LISTEN="0")
    assert done.returncode == 78
    command = f"{sys.executable} -m pip install '{Path(__file__).parents[1]}[web]'"
    assert done.stderr == (
        f"iqgateway2mqtt: BRIDGE_HTTP__LISTEN: {missing} is missing; this installs it: {command}\n"
    )


def test_who_wants_no_listener_loads_none() -> None:
    code = (
        "import asyncio, sys\n"
        "from bridge.commands.run import require_listener, run_with_listener\n"
        "import bridge.commands.run\n"
        "from bridge.settings import Settings\n"
        "from bridge.service.bridge import Bridge\n"
        "async def main():\n"
        "    settings = Settings(state_dir=sys.argv[0])\n"
        "    require_listener(settings)\n"
        "    task = asyncio.create_task(run_with_listener(settings, Bridge(settings)))\n"
        "    await asyncio.sleep(0.1)\n"
        "    task.cancel()\n"
        "    await asyncio.wait({task})\n"
        "asyncio.run(main())\n"
        "print([name for name in ('uvicorn', 'prometheus_client', 'bridge.web') if name in sys.modules])\n"
    )
    assert python(code).stdout == "[]\n"


# Secrets


@pytest.mark.hasty
@pytest.mark.may_log(".")
@pytest.mark.parametrize("orders", STATES[::3], ids=lambda orders: "+".join(map("=".join, orders)) or "well")
async def test_no_answer_tells_a_secret(
    orders: tuple[tuple[str, str], ...], tmp_path: Path, guarded: Mosquitto
) -> None:
    async with watched(tmp_path, guarded) as home:
        for order in orders:
            home.simulator.faults.add(*order)
        async with served(home, gateway=home.account, mqtt=MQTT) as client:
            await until(
                lambda: (
                    problem(home) or home.simulator.count(READINGS_PATH) > 1 or home.simulator.count(INFO_PATH) > 2
                )
            )
            told = "".join(
                [f"{found.headers} {found.text}" for found in [await client.get(path) for path in PATHS]]
            )
        assert home.serial in told
        assert len(secrets(home.simulator)) > 5
        assert [
            secret for secret in (*secrets(home.simulator), BROKER_USER) if secret in _without_names(told)
        ] == []


def _without_names(text: str) -> str:
    """Remove our own name, which contains the broker's user."""
    return text.replace("bridge", "").replace("Bridge", "") if BROKER_USER == "bridge" else text
