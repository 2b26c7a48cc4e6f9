"""The documents quote the program's texts exactly, and they have all of its errors."""

import ast
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from brokers import Mosquitto, free_port, password_lines
from cli import Shell, home, served, shell
from houses import NOON_HOUR

from bridge.commands.session import CommandTiming
from bridge.gateway.token import REFUSED_FOR_S
from bridge.gateway.tokens import CLOUD_PAUSES_S, PAUSE_AFTER_RESTART_MAX_S
from bridge.model import MINUTE_S
from bridge.simulator import Simulator

__all__ = ["shell"]
ROOT = Path(__file__).resolve().parent.parent
TROUBLESHOOTING, TOKENS, BROKERS = (ROOT / f"docs/{name}.md" for name in ("troubleshooting", "tokens", "brokers"))
EDGE = ("client", "cloud", "errors", "token", "tokens")
"""The modules that tokens.md describes."""
ANYTHING = "…"
ERRORS = re.compile(r"(Rejected|Unavailable|Refused|KeyChanged|_RateLimited)$")
Scene = Callable[[Shell, Simulator], object]


def quotes(path: Path) -> list[str]:
    """The first column of the tables that begin with `it says`."""
    tables = re.findall(r"^\| it says \|.*\n\|[ -|]+\n((?:\|.*\n)+)", path.read_text(), re.MULTILINE)
    cells = [line.split(" | ")[0] for table in tables for line in table.splitlines()]
    return [quote for cell in cells for _, quote in re.findall(r"(`+)(.+?)\1(?!`)", cell)]


QUOTES = [quote for path in (TROUBLESHOOTING, TOKENS, BROKERS) for quote in quotes(path)]


@cache
def texts() -> frozenset[str]:
    """Every text of the program, with … in place of values."""
    found: set[str] = set()
    for path in (ROOT / "bridge").rglob("*.py"):
        module = module_of(path)
        tree = ast.parse(path.read_text())
        loose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        found |= {text for node in ast.walk(tree) if node not in loose and (text := template(node, module))}
    return frozenset(found)


def module_of(path: Path) -> ModuleType:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return importlib.import_module(name.removesuffix(".__init__").removesuffix(".__main__"))


def template(node: ast.AST, module: ModuleType) -> str:
    """A text with the constants of its module put in; nothing for other nodes."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%(\.\d)?[sdfg]", ANYTHING, text)
        case ast.JoinedStr(values=parts):
            return "".join(template(part, module) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) if isinstance(vars(module).get(name), str):
            return str(vars(module)[name])
        case ast.FormattedValue():
            return ANYTHING
        case _:
            return ""


def complaints(path: Path) -> Iterator[str]:
    """The texts of the errors that a module raises."""
    module = module_of(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.args and is_error(node.func):
            text = template(node.args[0], module)
            if re.search(r"\w", text):
                yield text


def is_error(called: ast.expr) -> bool:
    match called:
        case ast.Name(id=name):
            return ERRORS.search(name) is not None
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__"):
            return True
        case _:
            return False


@pytest.mark.parametrize("quote", sorted(set(QUOTES)))
def test_what_is_quoted_is_in_the_program(quote: str) -> None:
    assert [text for text in texts() if quote in text] != []


@pytest.mark.parametrize("name", EDGE)
def test_every_refusal_of_a_token_is_explained(name: str) -> None:
    found = list(complaints(ROOT / f"bridge/gateway/{name}.py"))
    if name in ("client", "errors"):  # their other errors are those of the connection
        found = [text for text in found if "token" in text]
    assert [text for text in found if not any(quote in text for quote in QUOTES)] == []


def test_the_refusals_are_found() -> None:
    found = [text for name in EDGE for text in complaints(ROOT / f"bridge/gateway/{name}.py")]
    assert len(found) > len(EDGE) * 3
    assert any(text.startswith("Enphase's cloud refuses the password") for text in found)


# Real runs


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


def faulty(place: str, fault: str, *more: str) -> Scene:
    def scene(_: Shell, simulator: Simulator) -> None:
        for each in (place, *more):
            simulator.faults.add(each, fault)

    return scene


SCENES: Mapping[str, Scene] = {
    "starting": faulty("gateway", "booting"),
    "another device": faulty("gateway", "html"),
    "no gateway": faulty("gateway", "404"),
    "an error": faulty("/api/v1/production", "503"),
    "a reset": faulty("/api/v1/production", "reset"),
    "not there": faulty("/api/v1/production", "404"),
    "refused": faulty("/api/v1/production", "401"),
    "everything refused": faulty("/ivp/*", "401", "/api/*"),
    "too old": faulty("/ivp/*", "404", "/api/*"),
    "revoked": lambda _, s: s.revoke_tokens(),
    "no token": lambda sh, _: sh.unset("gateway__token"),
    "no real token": lambda sh, _: sh.set(gateway__token="abc"),
    "expired": lambda sh, s: sh.set(gateway__token=s.token(exp=1_000_000_000)),
    "another's token": lambda sh, s: sh.set(gateway__token=s.token(aud="122300000000")),
    "due": lambda sh, s: sh.set(gateway__token=s.token(iat=0)),
    "another gateway": lambda sh, _: sh.set(gateway__serial="122300000000"),
    "closed port": lambda sh, _: sh.set(gateway__host=f"127.0.0.1:{free_port()}"),
    "plain HTTP": lambda sh, _: sh.set(gateway__host=f"http://127.0.0.1:{free_port()}"),
    "no broker": lambda sh, _: sh.set(mqtt__url=f"mqtt://127.0.0.1:{free_port()}"),
    "turned off": lambda sh, _: sh.set(poll__grid="0"),
}
ACCOUNT: Mapping[str, Scene] = {
    fault: faulty(place, fault)
    for place, fault in (
        ("login", "wrong_password"),
        ("login", "mfa"),
        ("login", "blocked"),
        ("login", "406"),
        ("login", "503"),
        ("login", "429"),
        ("login", "html"),
        ("tokens", "not_your_serial"),
        ("tokens", "wrong_aud"),
        ("tokens", "expired"),
    )
}
BY_ITSELF = {"advice", "environment"}
"""Steps whose notes need no explanation."""


@pytest.mark.parametrize("name", SCENES)
def test_what_check_says_is_explained(shell: Shell, broker: Mosquitto, name: str) -> None:
    shell.set(mqtt__url=broker.url)
    with home(shell) as simulator:
        SCENES[name](shell, simulator)
        assert_explained(shell)


@pytest.mark.parametrize("name", ACCOUNT)
def test_what_check_says_of_an_account_is_explained(shell: Shell, broker: Mosquitto, name: str) -> None:
    shell.set(mqtt__url=broker.url)
    with home(shell, token=False, account=True) as simulator:
        ACCOUNT[name](shell, simulator)
        assert_explained(shell)


def assert_explained(shell: Shell, timing: CommandTiming | None = None) -> None:
    told = shell.run("check", timing=timing)
    said = [line.text for line in told.lines if line.word in ("note", "problem") and line.step not in BY_ITSELF]
    assert said
    assert [text for text in said if not any(pattern(quote).search(text) for quote in QUOTES)] == []


def pattern(quote: str) -> re.Pattern[str]:
    return re.compile(".+".join(map(re.escape, quote.split(ANYTHING))))


def test_the_files_of_the_state_folder_are_those_of_the_document(shell: Shell, broker: Mosquitto) -> None:
    """The file of one gateway and that of the bridge are enough."""
    named = set(re.findall(r"^\| `([\w.-]+\.json)`", TOKENS.read_text(), re.MULTILINE))
    shell.set(mqtt__url=broker.url)
    with home(shell):
        assert shell.run("check").code == 0
    written = {path.name for path in Path("state").iterdir()}
    assert "gateway-122301003111.json" in written
    assert written <= named


# Problems other than a fault of the gateway


def test_a_changed_key_is_explained(shell: Shell, broker: Mosquitto) -> None:
    shell.set(mqtt__url=broker.url)
    simulator = Simulator(start_hour=NOON_HOUR)
    shell.set(gateway__token=simulator.token())
    with served(shell, simulator) as address:
        assert shell.run("check").code == 0
    with served(shell, simulator, port=int(address.rpartition(":")[2])):
        assert_explained(shell)
        simulator.become(firmware="D8.3.6000")
        assert_explained(shell)


@pytest.mark.parametrize(
    ("rule", "protocol"),
    [("read #", "5"), ("readwrite enphase/#", "5"), ("read #", "3.1.1"), ("write #", "3.1.1")],
)
def test_what_a_broker_refuses_is_explained(shell: Shell, tmp_path: Path, rule: str, protocol: str) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"user bridge\ntopic {rule}\n")
    rules.chmod(0o600)
    lines = [*password_lines(tmp_path, "bridge", "secret word"), f"acl_file {rules}"]
    with home(shell), Mosquitto(tmp_path, *lines) as guarded:
        shell.set(mqtt__url=guarded.url, mqtt__username="bridge", mqtt__protocol=protocol)
        shell.set(mqtt__password="secret word")
        assert_explained(shell, CommandTiming(echo=2))
        shell.set(mqtt__password="wrong word")
        assert_explained(shell, CommandTiming(echo=2))


def test_the_pauses_are_those_of_the_document() -> None:
    text = " ".join(TOKENS.read_text().split())
    minutes = [round(pause / MINUTE_S) for pause in CLOUD_PAUSES_S]
    assert minutes == [1, 5, 15, 30, 60, 120, 240]
    assert "the pauses are 1, 5, 15 and 30 minutes, then 1, 2 and 4 hours" in text
    assert (PAUSE_AFTER_RESTART_MAX_S, REFUSED_FOR_S) == (15 * MINUTE_S, 5 * MINUTE_S)
    assert "asked again within 15 minutes of a restart" in text
    assert "is tried again after five minutes" in text
