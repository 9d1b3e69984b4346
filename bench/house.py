"""The size of the house: `make figures` prints what `docs/architecture.md` promises of modules, functions and words."""

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

WIDTH = 120
PRODUCT = "bace_bridge"
WIDE_FOLDERS = frozenset(("sinks/mqtt",))
"""Folders that may hold more than fifteen modules: MQTT has as many traps."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
HEADING = re.compile(r"^#+ ")
NOQA = re.compile(r"#\s*(noqa|type:|pragma|fmt:|ruff:)")
DIALECT = re.compile(
    r"\b(a look(?!-up)|looks in a row|is told|are told|be told|to tell\b|tells|wish|wishes|mend|mends|visit|roll call|"
    r"rightly|nobody is|anybody is|contacts nobody|meant by nothing|goes with nothing|the broker's word|"
    r"without a word|for good|place_unreadable|HTML came|in order to end|ends it (?:well|in order)|your part|"
    r"is no duration|tried again, all|so many; 0)",
    re.IGNORECASE,
)
"""The words that a reader of Zigbee2MQTT's or httpcore's documentation would stop at."""


def modules(root: Path) -> list[Path]:
    return sorted(path for path in (root / PRODUCT).rglob("*.py") if path.stat().st_size)


def functions(source: str) -> int:
    return sum(isinstance(node, FUNCTIONS) for node in ast.walk(ast.parse(source)))


def comment_lines(source: str) -> int:
    """Lines with a comment that is for a reader, not for a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({one.start[0] for one in tokens if one.type == tokenize.COMMENT and not NOQA.match(one.string)})


def documents(root: Path) -> list[Path]:
    return [*sorted((root / "docs").rglob("*.md")), root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md"]


def long_lines(text: str) -> Iterator[str]:
    """Lines of prose that are too long; tables and code are left out."""
    in_code = False
    for line in text.splitlines():
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code and len(line) > WIDTH and not line.lstrip().startswith("|"):
            yield line


def glossary_entries(root: Path) -> int:
    """Rows of the tables of `docs/glossary.md`, without their headings."""
    rows = (root / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    return sum(row.startswith("| **") for row in rows)


def words(paths: list[Path], root: Path) -> Iterator[str]:
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for found in DIALECT.finditer(line):
                yield f"{path.relative_to(root)}:{number}: {found[0]}"


def table(root: Path) -> list[tuple[str, str]]:
    sources = {path: path.read_text(encoding="utf-8") for path in modules(root)}
    lines = {path: source.count("\n") for path, source in sources.items()}
    total = sum(lines.values())
    made = sum(map(functions, sources.values()))
    folders = Counter(path.parent.relative_to(root / PRODUCT).as_posix() for path in sources)
    narrow = {name: count for name, count in folders.items() if name not in WIDE_FOLDERS}
    largest = max(narrow, key=narrow.__getitem__)
    comments = sum(map(comment_lines, sources.values()))
    prose = [line for path in documents(root) for line in long_lines(path.read_text(encoding="utf-8"))]
    dialect = [*words([*sources, *documents(root)], root)]
    return [
        ("lines", f"{total:,}"),
        ("modules", f"{len(sources)}, median {statistics.median(lines.values()):.0f} lines"),
        ("functions per 1,000 lines", f"{1000 * made / total:.0f}"),
        ("largest flat folder", f"{largest}, {narrow[largest]} modules (sinks/mqtt: {folders['sinks/mqtt']})"),
        ("lines with a comment", f"{100 * comments / total:.1f} %"),
        ("glossary entries", str(glossary_entries(root))),
        ("lines of prose over 120 characters", str(len(prose))),
        ("words of the old dialect", str(len(dialect))),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=Path(), help="a checkout (default: this one)")
    parser.add_argument("--words", action="store_true", help="list where the words of the old dialect are")
    given = parser.parse_args()
    if given.words:
        print(*words([*modules(given.root), *documents(given.root)], given.root), sep="\n")
        return 0
    for name, value in table(given.root):
        print(f"{name:40}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
