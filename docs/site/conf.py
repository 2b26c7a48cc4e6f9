"""Settings of Sphinx for the documentation's website, which has the Markdown files of this repository as its pages.

Build it in the repository's folder: `sphinx-build -W --keep-going -c docs/site . build/site`.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

project, author = "iqgateway2mqtt", "the iqgateway2mqtt authors"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "examples/*/*.md", "homeassistant-addon/DOCS.md"]
myst_heading_anchors = 4  # the anchors that GitHub makes, too
html_theme = "furo"
html_title = project
html_copy_source = html_show_copyright = False
html_theme_options = {
    "source_repository": "https://github.com/iqgateway2mqtt/iqgateway2mqtt/",
    "source_branch": "main",
    "source_directory": "",
}


def contents() -> Iterator[str]:
    """The contents for the side of each page, from the list of documents in docs/README.md."""
    yield "```{toctree}\n:hidden:\n\ndocs/README\n```\n"
    listed = (ROOT / "docs/README.md").read_text()
    for part in re.split(r"^\*\*(?=\w+\*\*$)", listed, flags=re.MULTILINE)[1:]:
        caption, _, entries = part.partition("**")
        pages = [
            (ROOT / "docs" / target).resolve().relative_to(ROOT).with_suffix("")
            for target in re.findall(r"\]\(([\w./-]+\.md)\)", entries)
        ]
        yield "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *map(str, pages), "```", ""])


def add_contents(_: Any, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += "\n" + "\n".join(contents())


def add_index(app: Any, error: Exception | None) -> None:
    """The first page also has the name that web servers look for."""
    if not error and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index)
