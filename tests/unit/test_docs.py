"""What the documentation says of the code: each module that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "deploy" / "README.md"]
SOURCES = [path for folder in ("bace_bridge", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
NAMED = re.compile(r"[\w./-]*\w\.py\b")
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
