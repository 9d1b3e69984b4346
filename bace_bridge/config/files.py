"""The keys that name files: `<secret>_file`, whose content takes the secret's place, and those that parts read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bace_bridge.config.document import Place, section_model, spell
from bace_bridge.config.sections import Section
from bace_bridge.config.text import TextProblem, filled_lines, read_text
from bace_bridge.config.values import FromFile
from bace_bridge.errors import Mistake

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


def is_from_file(info: FieldInfo) -> bool:
    return _from_file(info) is not None


def _from_file(info: FieldInfo) -> FromFile | None:
    return next((mark for mark in info.metadata if isinstance(mark, FromFile)), None)


def _inline(section: Any, model: type[BaseModel], folder: Path, place: Place, inlined: Inlined) -> None:
    if not isinstance(section, dict):
        return
    for key, info in model.model_fields.items():
        inner = section_model(info.annotation)
        if from_file := _from_file(info):
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
    path, file_path = spell(place), spell(place) + "_file"
    if name is None:
        return
    if section.get(key) is not None:
        inlined.mistakes.append(Mistake(file_path, f"is given besides {key}", "keep one of the two"))
        return
    inlined.renamed[path] = file_path
    # Whatever goes wrong below, the value counts as given: one mistake is told, not its consequences as well.
    section[key] = ""
    if not isinstance(name, str) or not name:
        inlined.mistakes.append(Mistake(file_path, "must be the path of a file"))
        return
    if "://" in name or name.startswith("whsec_"):
        hint = f"give it to the key {key}, or put it in a file and name that"
        inlined.mistakes.append(Mistake(file_path, "must be the path of a file, not the value itself", hint))
        return
    content = _read(folder / name, file_path, inlined, most=_MOST_OF_A_SECRET)
    if content is None:
        return
    lines = filled_lines(content)
    section[key] = "\n".join(lines)
    if not lines:
        inlined.mistakes.append(Mistake(file_path, f"{folder / name} is empty"))
    elif len(lines) > 1 and not several:
        hint = "it must hold nothing else"
        inlined.mistakes.append(Mistake(file_path, f"{folder / name} holds {len(lines)} lines, not {key} alone", hint))


def _read(path: Path, key_path: str, inlined: Inlined, *, most: int) -> str | None:
    """Its text; None, and a mistake, where it has none."""
    try:
        return read_text(path, most=most)
    except OSError as error:
        inlined.mistakes.append(Mistake(key_path, f"cannot read {path}: {error.strerror}"))
    except TextProblem as found:
        inlined.mistakes.append(Mistake(key_path, f"{path} {found.problem}", found.hint))
    return None
