"""The status page in a real browser: phone and desktop, light and dark."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from brokers import TIMEOUT_S, free_port
from houses import House, house
from playwright.async_api import Browser, Page, async_playwright, expect
from test_web import GATEWAY, NOON, STATUS, going

from bridge.commands.run import run_with_listener
from bridge.control import Asked, CommandAnswer, CommandState
from bridge.endpoints import ENDPOINTS
from bridge.model import Reading
from bridge.records import CHARGE, FLAG, POWER, TEXT, VOLTAGE, measurement
from bridge.service.answers import DatedAnswer
from bridge.service.bridge import Bridge
from bridge.service.status import GatewayStatus, HomeStatus, SourceStatus, Status
from bridge.settings import HttpSettings
from bridge.web import listen

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDTHS_PX = {"phone": 360, "tablet": 800, "desktop": 1280}
SCHEMES: Sequence[Literal["light", "dark"]] = ("light", "dark")
MIN_TEXT_CONTRAST, MIN_DRAWING_CONTRAST = 4.5, 3.0
"""The least contrasts of texts and of drawings by WCAG 2."""
TIMEOUT_MS = 1000 * TIMEOUT_S

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed: apt-get install chromium"
)

MEASURE = Path(__file__).with_name("measure.js").read_text()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None, "chromium is not installed: apt-get install chromium"
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        await found.close()


@asynccontextmanager
async def opened(browser: Browser, port: int, width: int = 1280, scheme: Any = "light") -> AsyncIterator[Page]:
    """Open the page. The test fails if the page reports an error or sends a request to another host."""
    context = await browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, locale="en-GB"
    )
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    requests: set[str] = set()
    page.on("request", lambda asked: requests.add(urlsplit(asked.url).netloc))
    await page.goto(f"http://127.0.0.1:{port}/")
    await page.locator(".sources tbody tr, #verdict.bad").first.wait_for()
    yield page
    assert (complaints, requests) == ([], {f"127.0.0.1:{port}"})
    await context.close()


@asynccontextmanager
async def shown(status: Status) -> AsyncIterator[int]:
    """A listener that serves this status."""
    port = free_port()
    async with going(listen(HttpSettings(listen=f"127.0.0.1:{port}"), lambda: status)):
        await up(port)
        yield port


@asynccontextmanager
async def bridged(home: House) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    """A bridge that polls this home. Yields the port of its status page, and its task."""
    port = free_port()
    settings = home.settings(http={"listen": f"127.0.0.1:{port}"}, poll={"profile": "live"})
    async with going(run_with_listener(settings, Bridge(settings))) as task:
        await up(port)
        yield port, task


async def up(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return writer.close()


async def assert_fits(page: Page) -> None:
    found = await page.evaluate(MEASURE)
    assert (found["wide"], found["outside"], found["cut"]) == (0, [], [])
    assert len(found["texts"]) > 50
    assert [(text, ratio) for text, ratio in found["texts"] if ratio < MIN_TEXT_CONTRAST] == []
    assert len(found["drawings"]) > 5
    assert [(name, ratio) for name, ratio in found["drawings"] if ratio < MIN_DRAWING_CONTRAST] == []


def at_each_width_and_scheme(test: Any) -> Any:
    each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
    return pytest.mark.parametrize("width", WIDTHS_PX.values(), ids=WIDTHS_PX)(each_scheme(test))


# A home whose values change


async def cell(page: Page, meter: str, phase: int, column: int) -> str:
    body = page.locator(".phases tbody", has=page.get_by_text(meter, exact=True))
    return await body.locator("tr").nth(phase).locator("td").nth(column - 1).inner_text()


@pytest.mark.may_log("rose from .*, which can't be")  # the gateway's clock leaps three hours, the bridge's does not
async def test_the_page_shows_what_the_broker_has_and_follows_it(browser: Browser, tmp_path: Path) -> None:
    async with house(tmp_path) as home, bridged(home) as (port, _):
        await home.settled()
        async with opened(browser, port) as page:
            await expect(page.locator("#summary")).to_have_text("Everything works", timeout=TIMEOUT_MS)
            for place, (meter, role) in enumerate(
                [("Production meter", "production"), ("Net consumption meter", "net-consumption")], 1
            ):
                for column, (name, digits) in enumerate([("power", 0), ("voltage", 1), ("current", 2)], 1):
                    wanted = float(home.topic(f"meter/{role}/l{place}/{name}") or "nan")
                    told = (await cell(page, meter, place, column)).replace("\u2212", "-")
                    assert float(told) == pytest.approx(wanted, abs=0.6 * 10**-digits)
            solar = page.locator(".node.solar .value")
            kilowatts = float(home.topic("site/solar/power") or "nan") / 1000
            before = await solar.inner_html()
            assert before == f"{kilowatts:.2f} kW"
            home.clock.forward(300)  # more energy than that of some minutes can't have come
            await expect(solar).not_to_have_text(before, timeout=TIMEOUT_MS)
            asked = sum(1 for endpoint in ENDPOINTS if endpoint.every.normal)  # those that are on by default
            lacking = (await page.locator(".lacking").inner_text()).count(",") + 1
            assert await page.locator(".sources tbody tr").count() == asked - lacking
            assert "127.0.0.1" in await page.locator("#broker").inner_text()


async def test_screen_readers_and_the_keyboard_reach_everything(browser: Browser, tmp_path: Path) -> None:
    """Everything has a role and a name, each number belongs to a phase, and the Tab key reaches all links."""
    async with house(tmp_path) as home, bridged(home) as (port, _):
        await home.settled()
        async with opened(browser, port) as page:
            status = page.get_by_role("status")
            await expect(status).to_contain_text("Everything works", timeout=TIMEOUT_MS)
            phases = page.get_by_role("table", name="Phases")
            await expect(phases.get_by_role("row", name="L2").first.get_by_role("cell")).to_have_count(5)
            await expect(phases.get_by_role("columnheader", name="phase")).to_be_visible()
            sources = page.get_by_role("table", name="What answers, and how fast")
            row = sources.get_by_role("row").filter(has=page.get_by_role("rowheader", name="readings"))
            await expect(row).to_contain_text("fresh")
            await expect(page.get_by_role("img", name=re.compile("solar .* kW, grid .*"))).to_be_visible()
            assert await page.get_by_role("heading", level=1).count() == 1
            assert await page.locator("html").get_attribute("lang") == "en"
            for name in ("/healthz", "/readyz", "/metrics", "/status.json"):
                await page.keyboard.press("Tab")
                await expect(page.get_by_role("link", name=name)).to_be_focused()
                style = "getComputedStyle(document.activeElement).outlineStyle"
                assert await page.evaluate(style) != "none"


async def test_a_gateway_that_moved_is_shown_with_both_addresses(browser: Browser) -> None:
    seen = (source("readings", "good", fresh=True, age=2.5, took=0.25),)
    moved = replace(GATEWAY, host="envoy.local", address="192.0.2.50", sources=seen)
    status = replace(STATUS, gateways=(moved,))
    async with shown(status) as port, opened(browser, port) as page:
        facts = await page.locator(".facts dl").inner_text()
        assert re.search(r"Address\s+192\.0\.2\.50\s+In the settings\s+envoy\.local\s", facts)


@pytest.mark.may_log("broker|onnection")
async def test_the_page_says_what_does_not_work(browser: Browser, tmp_path: Path) -> None:
    async with house(tmp_path) as home, bridged(home) as (port, task):
        await home.settled()
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{port}/")
        summary, reasons = page.locator("#summary"), page.locator("#reasons li")
        await expect(summary).to_have_text("Everything works", timeout=TIMEOUT_MS)
        home.broker.stop()
        await expect(summary).to_have_text("There is a problem", timeout=TIMEOUT_MS)
        await expect(reasons).to_have_text(
            [re.compile(f"no connection to the broker {home.broker.url}: .*listens")]
        )
        home.broker.start()
        await expect(summary).to_have_text("Everything works", timeout=TIMEOUT_MS)
        await expect(reasons).to_have_count(0)
        task.cancel()
        await expect(summary).to_have_text("The bridge does not answer this page any more", timeout=TIMEOUT_MS)
        await context.close()


@at_each_width_and_scheme
async def test_the_page_fits(
    browser: Browser, width: int, scheme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with house(tmp_path) as home, bridged(home) as (port, _):
        await home.settled()
        async with opened(browser, port, width, scheme) as page:
            await expect(page.locator("#summary")).to_have_text("Everything works", timeout=TIMEOUT_MS)
            await assert_fits(page)
            if folder := request.config.getoption("--screenshots"):
                await page.screenshot(path=Path(folder, f"{width}-{scheme}.png"), full_page=True)


# States that are rare


def reading(device: str, name: str, value: Any, quantity: Any = POWER) -> Reading:
    return Reading(device, None, measurement(name, quantity), value)


def source(name: str, state: str, *, fresh: bool | None, age: float | None, took: float | None) -> SourceStatus:
    return SourceStatus(name, state, fresh, 900.0, age, took, 123_456, 234_567, 34_567, 45_678.9)


def told(target: str, value: object, state: CommandState, reason: str | None = None) -> DatedAnswer:
    answer = CommandAnswer(Asked(target, value, sender="the garage"), "one", state, reason)
    return DatedAnswer(answer, NOON - timedelta(days=1))


ODD = replace(
    GATEWAY,
    host="http://a-very-long-name-of-a-gateway-that-somebody-chose.in-a-network.example.org:8443",
    name="Ferienhaus am Ende der Welt, Nebengebäude Süd-West",
    online=False,
    problem="the gateway can't be read: no connection to the gateway: " + "x" * 150,
    token_expires=NOON - timedelta(days=3),
    flows_fresh=True,
    readings=(
        reading("site/solar", "power", -0.4),
        reading("site/grid", "power", -23456.7),
        reading("site/grid", "connected", False),
        reading("site/battery", "power", 12345.6),
        reading("site/battery", "soc", 100, CHARGE),
        reading("site/generator", "power", 8765.4),
        reading("site/home", "power", None),
        reading("meter/consumption", "power", None),
        reading("meter/consumption", "voltage", 1230.45, VOLTAGE),
    ),
    sources=(
        source("a_source_with_a_long_name", "good", fresh=True, age=86_000.0, took=29.94),
        source("stale", "good", fresh=False, age=1e6, took=0.0),
        source("failing", "failing", fresh=False, age=None, took=None),
        source("absent", "absent", fresh=None, age=None, took=None),
        source("waiting", "waiting", fresh=False, age=None, took=None),
    ),
    commands=(
        told("storage/settings/reserve", 30, CommandState.CONFIRMED),
        told("relay/nc1/state", "x" * 255, CommandState.REFUSED, "y" * 255),
        told("generator/1/exercise_minutes", "40", CommandState.SENT),
    ),
)
UNKNOWN = replace(
    GATEWAY, host="192.0.2.9", serial=None, firmware="", known=False, online=False, problem="no answer yet"
)
LEGACY: GatewayStatus = replace(
    GATEWAY, name="x" * 64, host="http://192.0.2.8", needs_token=False, token_expires=None
)
RARE = replace(
    STATUS,
    broker=replace(STATUS.broker, connected=False, address="wss://" + "broker." * 20 + "example.org:443"),
    gateways=(ODD, UNKNOWN, LEGACY),
)


@at_each_width_and_scheme
async def test_rare_states_fit_too(
    browser: Browser, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    async with shown(RARE) as port, opened(browser, port, width, scheme) as page:
        await assert_fits(page)
        if folder := request.config.getoption("--screenshots"):
            await page.screenshot(path=Path(folder, f"rare-{width}-{scheme}.png"), full_page=True)


async def test_rare_states_are_told(browser: Browser) -> None:
    async with shown(RARE) as port, opened(browser, port) as page:
        odd, unknown, legacy = [await page.locator(".gateway").nth(place).inner_text() for place in range(3)]
        assert "Ferienhaus am Ende der Welt, Nebengebäude Süd-West 122301003111" in odd
        assert "ended on 22 Nov 2026, owner" in odd
        assert "does not answer" in odd
        states = await page.locator(".gateway").first.locator(".sources td:nth-child(2)").all_inner_texts()
        assert states == ["fresh", "stale", "fails", "waiting"]
        assert "This gateway does not have: absent." in odd
        assert "not known yet" in unknown
        assert "not of now" in unknown
        assert "No meter has been read yet." in unknown
        assert "not asked yet" in unknown
        assert "no meters" not in odd + unknown + legacy
        assert "not needed" in legacy
        picture = page.locator(".flow").first
        assert (await picture.get_attribute("aria-label") or "").split(", ") == [
            "solar 0 W",
            "grid 23.46 kW to the grid",
            "battery 12.35 kW discharging 100 %",
            "generator 8.77 kW",
            "home \u2013",
        ]
        assert await picture.locator(".value").all_text_contents() == [
            *("0 W", "23.46 kW", "12.35 kW", "8.77 kW", "\u2013")
        ]
        assert await picture.locator(".state").all_text_contents() == ["off grid", "100 %, discharging"]
        assert await page.locator(".node.generator").nth(1).is_hidden()
        told_commands = await page.locator(".gateway").first.locator(".commands tbody tr").all_inner_texts()
        newest, refused, oldest = (re.split(r"\s*\t", line) for line in told_commands)
        assert newest[:3] == ["generator/1/exercise_minutes", "40", "sent"]
        assert (refused[0], refused[2]) == ("relay/nc1/state", "refused")
        assert (oldest[:3], oldest[3][:11]) == (["storage/settings/reserve", "30", "confirmed"], "24 Nov 2026")
        reasons = await page.locator(".commands .reasons").first.inner_text()
        assert reasons == f"relay/nc1/state {'x' * 255}: {'y' * 255}, from the garage"
        assert not await page.locator(".gateway").nth(1).locator(".commands").is_visible()
        assert "192.0.2.9: no answer yet" in await page.locator("#reasons").inner_text()


async def test_the_page_claims_only_what_was_read(browser: Browser) -> None:
    """A gateway that refuses answers; a token that is set is not missing; asking counts also where it fails."""
    seen = SourceStatus("readings", "failing", False, 5.0, None, None, 2, 0, 2, 0.5, "no connection: refused")
    problem = "the gateway refuses the token"
    refusing = replace(
        GATEWAY,
        online=False,
        is_refusing=True,
        has_token=True,
        token_expires=None,
        problem=problem,
        sources=(seen,),
    )
    without = replace(
        GATEWAY, serial="1", host="b", sources=(replace(seen, state="absent", fresh=None, error=None),)
    )
    async with shown(replace(STATUS, gateways=(refusing, without))) as port, opened(browser, port) as page:
        first, second = [page.locator(".gateway").nth(place) for place in range(2)]
        facts = await first.locator(".facts dl").inner_text()
        assert re.search(r"State\s+refuses the bridge\s", facts)
        assert re.search(r"Token\s+set, but of no use\s", facts)
        cells = await first.locator(".sources td").all_inner_texts()
        assert cells == ["fails", "\u2013", "\u2013", "5 s", "2", "2"]
        assert await first.locator(".errors li").all_inner_texts() == ["readings: no connection: refused"]
        assert await first.locator(".none").inner_text() == "No meter has been read yet."
        assert await second.locator(".none").inner_text() == "This gateway has no meters that tell phases."


async def test_what_the_controller_does_is_told(browser: Browser) -> None:
    """A limit and the battery's task are shown where they are known, and the stored settings only if not obeyed."""
    limited = (
        reading("limit/production", "active", True, FLAG),
        reading("limit/production", "cause", "installer's export limit of 500 W", TEXT),
        reading("storage/control", "action", "Charge From PV", TEXT),
        reading("storage/control", "reserve", 20.0, CHARGE),
        reading("storage/settings", "obeyed", "no", TEXT),
    )
    free = (
        reading("limit/production", "active", False, FLAG),
        reading("limit/production", "cause", "none", TEXT),
        reading("storage/settings", "obeyed", None, TEXT),
    )
    one = replace(GATEWAY, sources=(source("sched", "good", fresh=True, age=5.0, took=0.1),))
    roofs = (replace(one, readings=limited), replace(one, host="192.0.2.8", readings=free))
    async with shown(replace(STATUS, gateways=roofs)) as port, opened(browser, port) as page:
        facts = page.locator(".facts dl")
        await expect(facts.first).to_contain_text("limited: installer's export limit of 500 W", timeout=TIMEOUT_MS)
        for told in ("Charge From PV", "20 %", "the controller does not obey them"):
            await expect(facts.first).to_contain_text(told)
        for name in ("Solar power", "task", "Reserve", "Stored settings"):
            await expect(facts.nth(1)).not_to_contain_text(name)


async def test_old_values_say_of_when_they_are(browser: Browser) -> None:
    age = timedelta(days=2)
    seen = SourceStatus("readings", "good", False, 5.0, age.total_seconds(), 0.2, 2, 2, 0, 0.5)
    gone = replace(ODD, flows_fresh=False, flows_at=NOON - age, sources=(seen,), is_refusing=False)
    home = HomeStatus(
        "Villa", (gone.serial or "",), online=False, problem=None, readings=(reading("home", "power", 1),)
    )
    async with shown(replace(STATUS, gateways=(gone,), homes=(home,))) as port, opened(browser, port) as page:
        notes = await page.locator(".note").all_inner_texts()
        assert [bool(re.match("\u2013 of 23 Nov 2026, \\d\\d:00", note)) for note in notes] == [True] * 3


SHARED = replace(
    STATUS,
    gateways=(ODD,),
    homes=(
        HomeStatus(
            name="Villa",
            gateways=("122301003111", "http://a-very-long-name-of-a-gateway.in-a-network.example.org:8443"),
            online=False,
            problem="home villa: the gateways 122301003111 and 122301003112 each have a grid meter: " + "x" * 100,
            readings=(
                reading("solar", "power", 1500.0),
                reading("grid", "power", None),
                reading("home", "power", 1200.0),
            ),
        ),
    ),
)


@pytest.mark.parametrize("width", WIDTHS_PX.values(), ids=WIDTHS_PX)
async def test_a_home_of_several_gateways_comes_first(browser: Browser, width: int) -> None:
    async with shown(SHARED) as port, opened(browser, port, width) as page:
        await assert_fits(page)
        assert await page.locator(".gateway .name").first.inner_text() == "Villa all gateways of this home"
        home = page.locator(".gateway").first
        assert await home.locator(".flow .value").all_text_contents() == ["1.50 kW", "\u2013", "", "", "1.20 kW"]
        facts = await home.locator("dl").inner_text()
        assert "not all gateways answer" in facts
        assert "each have a grid meter" in facts
        assert await home.locator(".phases, .sources").count() == 0
        assert await page.locator(".gateway").nth(1).locator(".sources").count() == 1


async def test_what_comes_in_is_text_and_never_markup(browser: Browser) -> None:
    mark = "<img src=x onerror=alert(1)><b>bold</b>"
    status = replace(STATUS, gateways=(replace(ODD, name=mark, problem=mark, token_role=mark),))
    async with shown(status) as port, opened(browser, port) as page:
        assert await page.locator("b, .gateway img, .verdict img").count() == 0
        assert (await page.locator("body").inner_text()).count(mark) == 3


def test_the_picture_of_the_documents_is_small() -> None:
    assert 10_000 < (Path(__file__).parents[1] / "docs/images/status.png").stat().st_size < 200_000
