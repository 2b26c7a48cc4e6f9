"""`capture`: what it contains and what it leaves out, and that `simulate` plays it back unchanged."""

import errno
import json
import os
import re
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import EXIT_CONFIGURATION, EXIT_REFUSED, EXIT_UNAVAILABLE, Shell, Told, home, served, shell
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import BRIDGE_COMMAND, started
from running import Clock, until

from bridge.commands import capture
from bridge.commands.redaction import REMOVED, Redactor
from bridge.commands.session import CommandTiming
from bridge.endpoints import ENDPOINTS
from bridge.simulator import HARMFUL_PATHS, PASSWORD, Simulator
from bridge.simulator.replay import Replay, file_of

__all__ = ["shell"]
CAPTURED = Path(__file__).parents[2] / "shared" / "gateways"
"""Answers of real gateways, which are not part of the project."""
REAL_CAPTURES = (
    sorted(path for path in CAPTURED.iterdir() if (path / "info").is_file()) if CAPTURED.is_dir() else []
)
real = pytest.mark.skipif(not REAL_CAPTURES, reason="the captured gateways are not here")
OWN_CAPTURES = sorted(path for path in (Path(__file__).parent / "data").iterdir() if (path / "info").is_file())
DEVICE_SERIAL = r"(?<![\w.])\d{12,14}(?![\d.])"
RANDOM = r"\"vendor_data\": \"[^\"]*\""


def contents(file: str | Path = "taken.zip") -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def taken(shell: Shell, timing: CommandTiming | None = None) -> Told:
    return shell.run("capture", "--output", "taken.zip", timing=timing)


# --- what is taken ---


def test_all_answers_are_taken_each_once(shell: Shell) -> None:
    with home(shell) as simulator:
        told = taken(shell)
        paths = [seen.path for seen in simulator.requests]
    assert told.code == 0
    assert paths == [path.partition("?")[0] for path in capture.CAPTURED_PATHS]
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.source != "event_list"} < {*capture.CAPTURED_PATHS}
    assert not set(HARMFUL_PATHS) & set(paths)
    files = contents()
    names = map(file_of, capture.CAPTURED_PATHS)
    assert set(files) == {"_readme"} | {f"{name}{end}" for name in names for end in ("", "_log.json")}
    assert json.loads(files["ivp_meters_log.json"])["code"] == 200
    assert json.loads(files["ivp_ensemble_errors_log.json"])["code"] == 404


def test_the_file_is_private_and_nothing_is_overwritten(shell: Shell) -> None:
    with home(shell) as simulator:
        taken(shell)
        assert Path("taken.zip").stat().st_mode & 0o777 == 0o600
        before, asked = contents(), simulator.count()
        again = taken(shell)
        assert simulator.count() == asked
    assert again.code == EXIT_CONFIGURATION
    assert again.errors == "iqgateway2mqtt: --output: taken.zip: exists already; name another file\n"
    assert contents() == before


def test_the_file_has_a_name_of_its_own(shell: Shell) -> None:
    with home(shell):
        told = shell.run("capture")
    (file,) = Path().glob("*.zip")
    assert re.fullmatch(r"iqgateway2mqtt-D8\.3\.5167-\d{8}-\d{6}\.zip", file.name)
    assert told.about("look at it").text == f"unzip -p {file} | less"
    assert told.about("play it").text == f"iqgateway2mqtt simulate {file}"


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere/taken.zip", "there is no such folder"), (f"{'x' * 300}.zip", "File name too long")],
)
def test_a_file_that_can_not_be(shell: Shell, name: str, says: str) -> None:
    told = shell.run("capture", "--output", name)
    assert told.code == EXIT_CONFIGURATION
    assert says in told.errors


def test_a_disk_that_takes_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: Path, *rest: int) -> int:
        if Path(path).name == "taken.zip":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *rest)

    with home(shell):
        monkeypatch.setattr(os, "open", full)
        told = taken(shell)
    assert told.code == EXIT_CONFIGURATION
    assert told.errors == "iqgateway2mqtt: --output: taken.zip: No space left on device\n"


@pytest.mark.parametrize("fault", ["hang", "reset", "huge", "404", "401", "403", "503", "html", "garbage", "empty"])
def test_one_endpoint_that_fails(shell: Shell, fault: str) -> None:
    with home(shell) as simulator:
        simulator.faults.add("/ivp/meters/readings", fault)
        told = taken(shell, CommandTiming(request=3.0))
    assert told.code == 0
    files = contents()
    if fault in ("hang", "reset", "huge"):
        assert "ivp_meters_readings" not in files
        assert b"No answer: /ivp/meters/readings: " in files["_readme"]
        assert told.about("no answer").text.startswith("/ivp/meters/readings: ")
    else:
        code = int(fault) if fault.isdigit() else 200
        assert json.loads(files["ivp_meters_readings_log.json"])["code"] == code
    assert "ivp_meters" in files


def test_a_gateway_that_falls_silent_is_left_in_peace(shell: Shell) -> None:
    with home(shell) as simulator:
        simulator.faults.add("/ivp/*", "hang")
        told = taken(shell, CommandTiming(request=2))
        assert simulator.count() == 4
    assert told.code == 0
    assert b"not asked, because the gateway had stopped answering" in contents()["_readme"]


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda simulator: simulator.faults.add("gateway", "booting"), EXIT_UNAVAILABLE),
        (lambda simulator: simulator.faults.add("/info", "html"), EXIT_UNAVAILABLE),
        (lambda simulator: simulator.revoke_tokens(), EXIT_REFUSED),
    ],
)
def test_where_nothing_can_be_taken(shell: Shell, prepare: Callable[[Simulator], None], code: int) -> None:
    with home(shell) as simulator:
        prepare(simulator)
        told = taken(shell)
    assert told.code == code
    assert len(told.of("problem")) == 1
    assert not list(Path().glob("*.zip"))


def test_without_a_token(shell: Shell) -> None:
    with home(shell, token=False):
        told = taken(shell)
    assert told.code == EXIT_REFUSED
    assert not Path("taken.zip").exists()


# --- what is left out ---


def test_nothing_secret_is_in_it(shell: Shell) -> None:
    shell.set(mqtt__username="brokeruser", mqtt__password="brokerword", gateway__name="Villa Kunterbunt")
    with home(shell, account=True) as simulator:
        told = taken(shell)
    text = b"".join(contents().values()).decode("latin-1")
    serials = [simulator.serial, *(unit.serial for unit in simulator.home.inverters), *batteries(simulator)]
    wifi = ("MyHome", "AA:BB:CC", "192.168.7.", f"ENVOY_{simulator.serial[-6:]}")
    for secret in (
        *shell.secrets,
        *wifi,
        *serials,
        "user@example.com",
        "brokeruser",
        "brokerword",
        "Villa",
        "127.0.0.1",
    ):
        assert secret not in text
    modules = len(simulator.home.batteries)  # the parts of a battery have serial numbers of their own
    assert told.about("replaced").text == (
        f"{len(serials) + modules} serial numbers, 2 name, place or passwords, 2 MAC addresses, 2 IP addresses"
    )
    assert "set-cookie" not in text.lower()


def batteries(simulator: Simulator) -> list[str]:
    return [*(unit.serial for unit in simulator.home.batteries), *(unit.serial for unit in simulator.home.gear)]


def test_a_cookie_and_a_token_check_are_nobodys_business(shell: Shell) -> None:
    with home(shell) as simulator:
        simulator.gateway.guard.needs_check = True
        assert taken(shell).code == 0
        assert simulator.count("/auth/check_jwt") > 0
    files = contents()
    assert not [name for name in files if "jwt" in name]
    assert not [name for name, body in files.items() if b"sessionId" in body]
    assert json.loads(files["ivp_meters_log.json"])["code"] == 200


def redacted(value: object, *secrets: str) -> str:
    body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    redactor = Redactor(secrets)
    redactor.learn(body)
    return redactor.apply(body).decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"serial_num": "122301003111"}, {"serial_num": "900000000001"}),
        ({"serialNumber": 122301003111}, {"serialNumber": 900000000001}),
        ({"sn": "122301003111EIM1"}, {"sn": "900000000001EIM1"}),
        ({"sn": "AB-1234-C"}, {"sn": "X00000001"}),
        ({"pv_serial_nb": ["122301003112", "GEN99"]}, {"pv_serial_nb": ["900000000003", "X0001"]}),
        ({"serial_nums": {"122301003111": {}}}, {"serial_nums": {"900000000001": {}}}),
        ({"text": "unit 122301003111."}, {"text": "unit 900000000001."}),
        ({"serial_num": "AB12", "x": "AB12, AB12"}, {"serial_num": "X001", "x": "AB12, AB12"}),
        ({"serial_num": "unknown", "x": "unknown"}, {"serial_num": "X000001", "x": "unknown"}),
        ({"serial_num": "", "sn": "000000000000"}, {"serial_num": "", "sn": "000000000000"}),
        ({"api_ecagtDevIdToSerial": 1234567}, {"api_ecagtDevIdToSerial": 1234567}),
        ({"load_name": "Anna's fridge"}, {"load_name": REMOVED}),
        ({"devName": "pcu", "state": "enabled"}, {"devName": "pcu", "state": "enabled"}),
        ({"latitude": 52.1, "lon": -7, "zip": "12345"}, {"latitude": 0, "lon": 0, "zip": REMOVED}),
        ({"timezone": "Europe/Berlin", "city": "Köln"}, {"timezone": REMOVED, "city": REMOVED}),
        ({"x": "mail anna.b@example.net now"}, {"x": "mail user1@example.com now"}),
        ({"mac": "00:1D:C0:73:5C:04"}, {"mac": "02:00:00:00:00:01"}),
        ({"eui": "001dc0735c04aabb"}, {"eui": "0200000000000001"}),
        ({"ip": "192.168.3.16", "u": "http://10.0.0.1/x"}, {"ip": "192.0.2.1", "u": "http://192.0.2.2/x"}),
        (
            {"ip": "fe80::1234:5678", "l": "127.0.0.1", "n": "::"},
            {"ip": "2001:db8::1", "l": "127.0.0.1", "n": "::"},
        ),
        ({"ssid": "At Anna's", "psk": "guess"}, {"ssid": REMOVED, "psk": REMOVED}),
        ({"x": "envoy_003111 and Envoy-122301003111"}, {"x": "envoy_000000 and Envoy-900000000001"}),
        ({"x": "eyJhbGciOi.eyJhdWQiOi.c2ln"}, {"x": REMOVED}),
        ({"x": "0123456789abcdef0123456789abcdef"}, {"x": REMOVED}),
        ({"x": "ENS_DEVICE_STATE_READY_AND_MUCH_MORE_OF_IT"}, {"x": "ENS_DEVICE_STATE_READY_AND_MUCH_MORE_OF_IT"}),
        ({"version": "8.3.5169", "t": "08:59:32", "flags": "0x0000000000000000"}, None),
        ({"whLifetime": 123456789012.5, "small": 0.122301003111, "ms": 1795359232000}, None),
        ({"n": "correct horse", "w": "horses"}, {"n": REMOVED, "w": "horses"}),
    ],
)
def test_redaction(before: object, after: object) -> None:
    known = {"serial_nums": {"122301003111": 0, "122301003112": 0}} if "pv_serial_nb" in str(before) else {}
    redactor = Redactor(["correct horse", "horse"])
    redactor.learn(json.dumps(known).encode())
    body = json.dumps(before, ensure_ascii=False).encode()
    redactor.learn(body)
    assert json.loads(redactor.apply(body)) == (before if after is None else after)


def test_redaction_of_xml_keeps_the_rest() -> None:
    before = "<device><sn>122301003111</sn><software>D8.3.5167</software></device><city>Ulm</city>"
    after = "<device><sn>900000000001</sn><software>D8.3.5167</software></device><city>[removed]</city>"
    assert redacted(before) == after


def test_what_is_no_text_survives() -> None:
    body = bytes(range(256)) + b' "sn": "122301003111'
    redactor = Redactor()
    redactor.learn(body)
    assert redactor.apply(body) == body[:256] + b' "sn": "900000000001'


def test_serials_stay_in_order_and_apart() -> None:
    redactor = Redactor()
    serials = [f"{122301003111 + 13 * place}" for place in range(30)]
    body = json.dumps(serials).encode()
    redactor.learn(body)
    made = json.loads(redactor.apply(body))
    assert made == sorted(set(made))
    assert {len(serial) for serial in made} == {12}
    assert redactor.counts == {"serial number": 30}


DIGITS = st.integers(10**11, 10**12 - 1).map(str)


@settings(max_examples=300)
@given(
    serials=st.lists(DIGITS, min_size=1, max_size=5, unique=True),
    around=st.text(st.characters(exclude_categories=["Nd", "Cs"]), max_size=8),
    field=st.sampled_from(["sn", "serial_num", "note", "pv_serial_nb", "x"]),
    secret=st.text(st.characters(categories=["Ll", "Lu", "Sm", "Po"]), min_size=8, max_size=20),
)
def test_no_serial_and_no_secret_survives(serials: list[str], around: str, field: str, secret: str) -> None:
    document = {field: [f"{around}{serial}{around}" for serial in serials], "by": dict.fromkeys(serials, secret)}
    body = json.dumps(document, ensure_ascii=False).encode()
    redactor = Redactor([secret])
    redactor.learn(body)
    after = redactor.apply(body).decode()
    for serial in serials:
        assert serial not in after or serial.startswith("90000000")
    assert set(json.loads(after)["by"].values()) == {REMOVED}


@real
@pytest.mark.parametrize("folder", REAL_CAPTURES, ids=lambda folder: folder.name)
def test_real_gateways_lose_their_serials_and_nothing_else(folder: Path) -> None:
    bodies = {
        file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and "_log" not in file.name
    }
    redactor = Redactor()
    for body in bodies.values():
        redactor.learn(body)
    made = {name: redactor.apply(body) for name, body in bodies.items()}
    before = set(re.findall(DEVICE_SERIAL, "".join(body.decode("latin-1") for body in bodies.values())))
    after = b"".join(made.values()).decode("latin-1")
    assert not [serial for serial in before if serial in after]
    for endpoint in ENDPOINTS:
        name = file_of(endpoint.path)
        if name in bodies and name != "info" and endpoint.appendix:  # the names of loads are personal
            kept, was = (re.sub(f"{DEVICE_SERIAL}|{RANDOM}", "#", all_[name].decode()) for all_ in (made, bodies))
            assert kept == was
    again = Redactor()
    for body in made.values():
        again.learn(body)
    assert {name: again.apply(body) for name, body in made.items()} == made


# --- playing it ---


MOMENT = re.compile(
    r"/(certificate|token_expires|last_answer|answer_time|failures|info|\w+_since|counters/.*)( |$)"
    r"|/relay/n\w+(/name)? "
    r'|"timestamp"|configuration_url'
)


def topics(told: Told) -> list[str]:
    """The output of `once`, without what depends on time or serial numbers, and without the owner's names."""
    lines = (re.sub(r"\d{12}", "#", line) for line in told.text.splitlines() if not MOMENT.search(line))
    return sorted(re.sub(r'("iqgateway_#_relay_\w+"\], )"name": "[^"]*"', r"\1", line) for line in lines)


@pytest.mark.parametrize("name", ["three-phase", "split-phase", "no-cts", "legacy"])
def test_a_capture_gives_what_the_gateway_gave(shell: Shell, name: str) -> None:
    simulator = Simulator(name, clock=Clock())
    secure = simulator.home.secure
    if secure:
        shell.set(gateway__token=simulator.token())
    with served(shell, simulator, tls=secure):
        shell.run("once")  # turns the live stream on
        assert taken(shell).code == 0
        original = shell.run("once")
    replay = Replay(Path("taken.zip"))
    assert replay.serial != simulator.serial
    assert replay.secure == secure
    if secure:
        shell.set(gateway__token=replay.token())
    with served(shell, replay, tls=secure):
        again = shell.run("once")
        assert (
            shell.set(mqtt__url="mqtt://127.0.0.1:9").run("check").about("gateway").text.startswith(replay.serial)
        )
    assert original.code == again.code
    assert len(topics(again)) > 30
    # The battery's energy is its power times the seconds between the two rounds.
    energy = re.compile("site/battery( |/energy_)")
    assert [line for line in topics(again) if not energy.search(line)] == [
        line for line in topics(original) if not energy.search(line)
    ]


@pytest.mark.parametrize("folder", [*REAL_CAPTURES, *OWN_CAPTURES], ids=lambda folder: folder.name)
def test_a_captured_set_is_captured_again(shell: Shell, folder: Path) -> None:
    """`capture` reads all answers of `simulate`, so the two agree about the files of a capture."""
    replay = Replay(folder)
    with served(shell, replay, tls=replay.secure):
        if replay.secure:
            shell.set(gateway__token=replay.token())
        assert taken(shell).code == 0
    copy = Replay(Path("taken.zip"))
    for path in capture.CAPTURED_PATHS:
        old, new = replay.answer(path), copy.answer(path)
        assert new.status == old.status, path
        assert len(new.body) >= len(old.body) * 0.9
    assert (copy.firmware, copy.secure) == (replay.firmware, replay.secure)


def test_an_account_serves_for_a_replay_too(shell: Shell) -> None:
    with home(shell):
        taken(shell)
    shell.unset("gateway__token")
    replay = Replay(Path("taken.zip"))
    with served(shell, replay, with_cloud=True):
        shell.set(gateway__username="user@example.com", gateway__password=PASSWORD)
        assert shell.run("token", "get").code == 0


async def test_simulate_plays_a_capture(tmp_path: Path) -> None:
    folder = next(folder for folder in OWN_CAPTURES if folder.name.startswith("8"))
    async with started(*BRIDGE_COMMAND, "simulate", str(folder), "--port", "0") as program:
        await until(lambda: any("Ctrl-C" in line for line in program.out))
        env = dict(line.split("=", 1) for line in program.out if re.match("BRIDGE_GATEWAY__(HOST|TOKEN)=", line))
        assert "8.2.62_device_list, firmware D8.2.62: gateway " in program.out[0]
        async with started(*BRIDGE_COMMAND, "once", env={**env, "BRIDGE_STATE_DIR": str(tmp_path)}) as once:
            assert await once.ended() == 0
            assert any("battery" in line for line in once.out)
        assert await program.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: None, "No such file or directory"),
        (lambda file: file.write_bytes(b"no zip"), "is neither a folder nor a zip file that can be read"),
        (lambda file: file.mkdir(), "is no capture of a gateway"),
        (lambda file: zipped(file, {"info": b"<html></html>"}), "is no capture of a gateway"),
        (lambda file: zipped(file, {"info": b"\0" * 70_000_000}), "is too big for a capture"),
    ],
)
def test_what_is_no_capture(shell: Shell, make: Callable[[Path], object], says: str) -> None:
    file = Path("capture.zip")
    make(file)
    told = shell.run("simulate", str(file), "--port", "0")
    assert told.code == EXIT_CONFIGURATION
    assert says in told.errors
    assert told.errors.startswith("iqgateway2mqtt: capture.zip")


INFO_BODY = b"<envoy_info><device><sn>122301003111</sn><software>D8.3.5167</software></device></envoy_info>"


def zipped(file: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return file


def test_a_packed_folder_is_unpacked_too() -> None:
    replay = Replay(zipped(Path("capture.zip"), {"house/info": INFO_BODY, "house/ivp_meters": b"[]"}))
    assert replay.answer("/ivp/meters").body == b"[]"
    assert replay.answer("/ivp/meters/readings").status == 404


@pytest.mark.parametrize("log", [b"", b"[]", b"{", b'{"code": "x"}', b'{"code": 9999}', b'{"headers": 3}'])
def test_a_log_that_means_nothing(log: bytes) -> None:
    replay = Replay(
        zipped(Path("capture.zip"), {"info": INFO_BODY, "ivp_meters": b"[]", "ivp_meters_log.json": log})
    )
    assert (replay.answer("/ivp/meters").status, replay.answer("/ivp/meters").body) == (200, b"[]")


@pytest.mark.parametrize("reports", [b"", b"{}", b'[3, "x"]', b"[" * 100_000])
def test_reports_that_mean_nothing(reports: bytes) -> None:
    replay = Replay(zipped(Path("capture.zip"), {"info": INFO_BODY, "ivp_meters_reports": reports}))
    assert replay.answer("/ivp/meters/reports/consumption").status == 200
