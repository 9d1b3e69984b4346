"""Reading text files as editors leave them, and the keys of the configuration that name files."""

import os
import re
import select
import stat
import time
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bace_bridge.config.sections import Section
from bace_bridge.config.values import FromFile, format_size
from bace_bridge.errors import Mistake

PIPE_PATIENCE = 5.0
"""Seconds in which the writer of a pipe must have written everything and left."""

_MARK = "\ufeff"
"""The byte order mark: at the beginning, and wherever files were put behind one another."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
"""What YAML allows in no file either."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class TextProblem(Exception):
    """Why a file gives no text, in words that follow its path; they hold nothing of its content."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def read_text(path: Path, *, most: int, patience: float | None = None) -> str:
    r"""The text without byte order marks, with `\n` for every end of a line.

    `most` is in bytes. `patience` is how many seconds a pipe or a device may take; None: neither is read.

    Raises:
        OSError: The system does not give the file.
        TextProblem: It is no such file, or not text.
    """
    try:
        # Opening a pipe waits for its writer otherwise. Path.open takes no opener.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                content = file.read(most + 1)
            elif patience is not None:
                content = _written_to(file.fileno(), most, patience)
            else:
                raise TextProblem("is not a regular file")
    except ValueError:  # a character that no path holds
        raise TextProblem("is not the path of a file") from None
    if len(content) > most:
        raise TextProblem(f"is larger than {format_size(most)}")
    return _decoded(content)


def filled_lines(text: str) -> list[str]:
    """The lines that hold something, without the blanks at their ends."""
    return [line for one in text.splitlines() if (line := one.strip())]


def half_character(text: str) -> str | None:
    """The first one that UTF-8 has no bytes for; bytes that are not UTF-8 are such characters in the environment."""
    found = _HALF_CHARACTER.search(text)
    return found and found[0]


def _written_to(pipe: int, most: int, patience: float) -> bytes:
    """What comes until the writer leaves, `most` + 1 bytes at most."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    content, until = b"", time.monotonic() + patience
    while len(content) <= most:
        left = max(0.0, until - time.monotonic())
        if not poll.poll(left * 1000):
            hint = "does a program write to it and close it?"
            raise TextProblem(f"is a pipe that did not end within {patience:g} s", hint)
        part = os.read(pipe, most + 1 - len(content))
        if not part:
            break
        content += part
    return content


def _decoded(content: bytes) -> str:
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise TextProblem("is UTF-16 text", "save it as UTF-8")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise TextProblem(f"is not UTF-8 text (byte {error.start + 1})", "save it as UTF-8") from None
    text = text.replace(_MARK, "").replace("\r\n", "\n").replace("\r", "\n")
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise TextProblem(f"holds a control character on line {line} (U+{ord(control[0]):04X})", "remove it")
    return text


Place = tuple[str | int, ...]


def spell(place: Place) -> str:
    """`("webhooks", 0, "url")` as `webhooks[0].url`; a datatype's number is a key, not an index."""
    spelled = ""
    for step in place:
        if isinstance(step, int) and spelled != "datatypes":
            spelled += f"[{step}]"
        else:
            spelled += f".{step}" if spelled else str(step)
    return spelled


def is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, once or many times."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := section_model(inner))), None)


def model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """The section that `place` is in or names."""
    for step in place:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        inner = section_model(field.annotation) if field else None
        model = inner or model
    return model


def as_written(place: Place, raw: Any) -> Place:
    """`place`, but no deeper than `raw` goes: a single secret in the place of a list has no index."""
    for depth, step in enumerate(place):
        if not isinstance(raw, dict | list):
            return place[:depth]
        if isinstance(raw, dict):
            raw = raw.get(step)
        elif isinstance(step, int) and step < len(raw):
            raw = raw[step]
    return place


_MOST_OF_A_SECRET = 64 * 2**10


@dataclass
class Inlined:
    """What became of the file keys; `renamed` is from the path of each value to that of its file key."""

    mistakes: list[Mistake] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def inline_files(section: Any, model: type[BaseModel], folder: Path) -> Inlined:
    """Replaces, in place, file keys by what they mean. Relative paths are relative to `folder`."""
    inlined = Inlined()
    _inline(section, model, folder, (), inlined)
    return inlined


def file_key(info: FieldInfo) -> FromFile | None:
    """Not None where the key has a sibling `<key>_file`."""
    return next((mark for mark in info.metadata if isinstance(mark, FromFile)), None)


def _inline(section: Any, model: type[BaseModel], folder: Path, place: Place, inlined: Inlined) -> None:
    if not isinstance(section, dict):
        return
    for key, info in model.model_fields.items():
        inner = section_model(info.annotation)
        if from_file := file_key(info):
            if f"{key}_file" in section:
                _read_secret(section, key, folder, (*place, key), inlined, several=from_file.several)
        elif info.annotation is Path or Path in get_args(info.annotation):
            if isinstance(section.get(key), str):
                section[key] = str(folder / section[key])
        elif inner:
            value = section.get(key)
            items = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, item in items:
                step: Place = (key,) if index is None else (key, index)
                _inline(item, inner, folder, (*place, *step), inlined)
    if issubclass(model, Section):
        found = model.mistakes_in_files(section)
        inlined.mistakes += [Mistake(f"{spell(place)}.{one.path}", one.problem, one.hint) for one in found]


def _read_secret(
    section: dict[Any, Any], key: str, folder: Path, place: Place, inlined: Inlined, *, several: bool
) -> None:
    name = section.pop(f"{key}_file")
    file_path = spell(place) + "_file"
    if name is None:
        return
    if section.get(key) is not None:
        inlined.mistakes.append(Mistake(file_path, f"cannot be combined with {key}", "keep one of the two"))
        return
    inlined.renamed[spell(place)] = file_path
    # Whatever goes wrong below, the value counts as given: one mistake is reported, not its consequences as well.
    section[key] = ""
    if not isinstance(name, str) or not name:
        inlined.mistakes.append(Mistake(file_path, "must be the path of a file"))
        return
    if "://" in name or name.startswith("whsec_"):
        hint = f"give it to the key {key}, or put it in a file and name that"
        inlined.mistakes.append(Mistake(file_path, "must be the path of a file, not the value itself", hint))
        return
    path = folder / name
    try:
        lines = filled_lines(read_text(path, most=_MOST_OF_A_SECRET))
    except OSError as error:
        inlined.mistakes.append(Mistake(file_path, f"cannot read {path}: {error.strerror}"))
        return
    except TextProblem as found:
        inlined.mistakes.append(Mistake(file_path, f"{path} {found.problem}", found.hint))
        return
    section[key] = "\n".join(lines)
    if not lines:
        inlined.mistakes.append(Mistake(file_path, f"{path} is empty"))
    elif len(lines) > 1 and not several:
        hint = "it must hold nothing else"
        inlined.mistakes.append(Mistake(file_path, f"{path} holds {len(lines)} lines, not {key} alone", hint))
