"""What the documentation points to is there: modules of the code, pages and their headings."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "deploy" / "README.md"]
SOURCES = [path for folder in ("bace_bridge", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
NAMED = re.compile(r"(?<![\w>/.-])[\w.][\w./-]*\.py\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
EXAMPLES = {"receiver.py"}
"""Files that a reader makes."""


def is_there(name: str) -> bool:
    return name in EXAMPLES or any(f"/{path.relative_to(ROOT).as_posix()}".endswith(f"/{name}") for path in SOURCES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_module_that_a_document_names_exists(document: Path) -> None:
    named = set(NAMED.findall(document.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not is_there(name.removeprefix("./"))) == []


@pytest.mark.parametrize("name", ["domain/outbox.py", "nowhere.py", "ox.py"])
def test_a_module_that_was_moved_or_is_only_the_end_of_a_name_is_missing(name: str) -> None:
    assert not is_there(name)


def where_to_look() -> list[str]:
    """The rows of that table in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## Where to look\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", where_to_look(), ids=lambda row: row.split("|")[1].strip())
def test_the_files_to_look_at_hold_what_is_named_beside_them(row: str) -> None:
    named = re.findall(r"`([^`]+)`", row.split("|")[2])
    files = [name for name in named if name.endswith(".py")]
    found = [path for name in files for path in (ROOT / "bace_bridge").glob(name.replace("<kind>", "*"))]
    assert len(found) >= len(files) > 0
    text = "\n".join(path.read_text(encoding="utf-8") for path in found)
    words = {one.rpartition(".")[2] for one in named if "/" not in one and one not in files}
    assert words - {*re.findall(r"\w+", text)} == set()


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    broken = []
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        page = document.parent / path if path else document
        if "://" not in link and not (page.exists() and (not anchor or anchor in anchors(page))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_link_leads_to_a_page_and_a_heading(document: Path) -> None:
    assert broken_links(document) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One (of two)\n[a](#one-of-two) [b](#two) [c](other.md) [d](https://example.org/#x)\n")
    assert broken_links(page) == ["#two", "other.md"]
