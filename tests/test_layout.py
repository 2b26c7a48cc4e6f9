"""The size of the code: how many modules there are, and how long files and classes may become.

`.venv/bin/python tests/test_layout.py` prints the figures. If a limit is exceeded, divide the code better instead
of raising the limit.
"""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bridge.model import BridgeError

PACKAGE_FOLDER = Path(__file__).parents[1] / "bridge"
MOST_MODULES = {"bridge": 100, "simulator": 15}
"""Beyond 65: `inverters`, since who reports, sleeps or has gone is a matter of its own beside repairs and counters;
three modules for homes of several gateways: their flows, their energies, and how they are published; five for the
site: `battery`, `clamp`, `counting`, `days` and `totals`, each a rule of docs/numbers.md with its own state;
`counters/state`: what is kept of a counter and possible for it, apart from the rules that judge it;
`service/peers`: which other bridges are alive, beside what is polled; three for what
former settings have left at the broker: `service/leftovers`, which the service and `clean` need, `commands/clean`,
which reads and removes, and `commands/ownership`, which decides without a broker what is ours;
`rows`: which values a gateway has and which source gives each, which discovery and the state need, apart from
`topics`, which renders them;
`discovery/devices`: what people read of a device, apart from the messages that announce it, and
`discovery/controls`: what can be set there, with its own platforms, templates and ranges;
`commands/terminal`: how a person answers, for `setup` and `token`; `commands/draft`: which answers of `setup`
work, and the file that gets them, apart from the questions;
`gateway/auth`: what proves who asks, apart from the connection; `gateway/http1`: HTTP over one connection, since
httpx's transport takes bytes that nobody asked for as the next answer;
seven for commands: `control` with `changes`, `values` and `progress`: what is asked, what is written, what
the gateway tells, and how far a command is, all pure; `service/commander` and `service/answers`: carrying commands
out, and publishing their answers; `service/assembly`: the parts of the service from the settings, which the command
`once` needs without a bridge; `mqtt/loop`: paho on the event loop, apart from what a connection means;
`commands/picture`: how `once` and `demo` show a home to people; `commands/set`: a command from the command line;
`events`: what has happened, which has a memory as counters have, but is no number; `service/events`: how it is
published once and kept, beside the retained topics of `service/output`;
`endpoints/controller`, since six answers tell what the controller does and how it limits solar power; `in_force`,
which compares answers of several endpoints and has a memory, and is neither a flow nor a counter. Of the simulator,
`controller`: `/ivp/sc/*` and the limits, apart from the storage gear."""
MOST_LINES = 400
LONGER_FILES = frozenset({"settings.py", "endpoints/__init__.py"})
"""Settings and the table of endpoints: lists that are read one entry at a time."""
MOST_CLASS_LINES = 260
LARGE_CLASS_LINES, MOST_LARGE_CLASSES = 120, 12
"""Four beyond six are the numbers of a site: `Site`, `SiteEnergies`, `Energies` and `BatteryState`, with a rule for
each method. `Commands` and `Commander` have a method for each thing that can happen to a command."""

LOGGER_NAME = "LOG"
"""The only constant that each module may have for itself."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Lines by file and by class. Every `__init__.py` counts as a module."""

    files: Mapping[str, int]
    classes: Mapping[str, int]

    @classmethod
    def read(cls, folder: Path = PACKAGE_FOLDER) -> "Layout":
        files: dict[str, int] = {}
        classes: dict[str, int] = {}
        for path in sorted(folder.rglob("*.py")):
            text, name = path.read_text(), path.relative_to(folder).as_posix()
            files[name] = len(text.splitlines())
            classes |= {f"{name}:{found}": lines for found, lines in _classes(ast.parse(text))}
        return cls(files, classes)

    @property
    def modules(self) -> Mapping[str, int]:
        """How many modules there are, those of the simulator apart."""
        simulator = sum(name.startswith("simulator/") for name in self.files)
        return {"bridge": len(self.files) - simulator, "simulator": simulator}

    def longer_classes(self, lines: int) -> Mapping[str, int]:
        found = {name: length for name, length in self.classes.items() if length > lines}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def longer_files(self, lines: int) -> Mapping[str, int]:
        return {name: length for name, length in self.files.items() if length > lines}


def _classes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_there_are_few_modules() -> None:
    modules = Layout.read().modules
    assert {name: count for name, count in modules.items() if count > MOST_MODULES[name]} == {}


def test_no_file_is_long() -> None:
    longer = Layout.read().longer_files(MOST_LINES)
    assert {name: lines for name, lines in longer.items() if name not in LONGER_FILES} == {}


def test_no_class_is_long_and_few_are_large() -> None:
    layout = Layout.read()
    assert layout.longer_classes(MOST_CLASS_LINES) == {}
    assert len(layout.longer_classes(LARGE_CLASS_LINES)) <= MOST_LARGE_CLASSES


def test_the_limits_notice_what_exceeds_them(tmp_path: Path) -> None:
    body = "\n".join(f"    value_{number} = {number}" for number in range(MOST_LINES))
    (tmp_path / "long.py").write_text(f"class Long:\n{body}\n")
    layout = Layout.read(tmp_path)
    assert layout.longer_files(MOST_LINES) == {"long.py": MOST_LINES + 1}
    assert layout.longer_classes(MOST_CLASS_LINES) == {"long.py:Long": MOST_LINES + 1}
    assert layout.modules == {"bridge": 1, "simulator": 0}


def types(tree: ast.Module) -> Iterator[str]:
    """Names of the classes of a module, and of other module names that are written like a class: type aliases."""
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    yield from (name for name in assigned(tree) if not name.startswith("_") and not name.isupper())


def constants(tree: ast.Module) -> Iterator[str]:
    yield from (name for name in assigned(tree) if name.isupper())


def assigned(tree: ast.Module) -> Iterator[str]:
    """The names that a module assigns outside its functions and classes."""
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        for target in targets:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def repeated(folder: Path, names: Callable[[ast.Module], Iterator[str]]) -> Mapping[str, list[str]]:
    """The names that several modules define, and these modules."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for name in {*names(ast.parse(path.read_text()))}:
            found.setdefault(name, []).append(path.relative_to(folder).as_posix())
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_a_class_name_has_one_meaning() -> None:
    assert repeated(PACKAGE_FOLDER, types) == {}


def test_a_constant_has_one_meaning() -> None:
    """The simulator states the gateway's constants for itself, so that a mistake in the bridge's shows."""
    found = repeated(PACKAGE_FOLDER, constants)
    own = {name: [m for m in modules if not m.startswith("simulator/")] for name, modules in found.items()}
    assert {name for name, modules in own.items() if len(modules) > 1} == {LOGGER_NAME}
    simulator = repeated(PACKAGE_FOLDER / "simulator", constants)
    assert simulator == {}


def test_a_name_with_two_meanings_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Home: ...\nNumber = float\nHOUR, DAY = 1, 2\n")
    (tmp_path / "other.py").write_text("class Outer:\n    class Home: ...\nNumber: object = int\nDAY: int = 2\n")
    modules = ["one.py", "other.py"]
    assert repeated(tmp_path, types) == {"Home": modules, "Number": modules}
    assert repeated(tmp_path, constants) == {"DAY": modules}


def drawn(text: str) -> list[tuple[int, str]]:
    """The depth and the name of each error of the tree in a docstring."""
    found = []
    for line in text.splitlines():
        branch, mark, rest = line.strip().rpartition("── ")
        if mark:
            found.append((len(branch) // 4 + 1, rest.split()[0]))
    return found


def below(error: type[BridgeError], depth: int = 1) -> Iterator[tuple[int, str]]:
    for kind in error.__subclasses__():
        yield depth, kind.__name__
        yield from below(kind, depth + 1)


def parents(tree: Iterable[tuple[int, str]]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    path = [BridgeError.__name__]
    for depth, name in tree:
        path[depth:] = [name]
        found[name] = path[depth - 1]
    return found


def test_the_tree_of_errors_shows_all_errors_in_their_places() -> None:
    import_module("bridge.commands")
    import_module("bridge.mqtt")
    assert parents(drawn(BridgeError.__doc__ or "")) == parents(below(BridgeError))


def _print(layout: Layout) -> None:
    lines = sys.stdout.write
    lines(f"modules: {layout.modules['bridge']}, and {layout.modules['simulator']} of the simulator\n")
    lines(f"lines: {sum(layout.files.values())}\n")
    for name, length in layout.longer_files(MOST_LINES).items():
        lines(f"file over {MOST_LINES} lines: {name} {length}\n")
    for name, length in layout.longer_classes(LARGE_CLASS_LINES).items():
        lines(f"class over {LARGE_CLASS_LINES} lines: {name} {length}\n")


if __name__ == "__main__":
    _print(Layout.read())
