"""The keys that name files: `<secret>_file`, whose content takes the secret's place, and the files of TLS."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bace_bridge.config.paths import Place, section_model, spell
from bace_bridge.config.values import FromFile
from bace_bridge.errors import Mistake


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
    return any(isinstance(mark, FromFile) for mark in info.metadata)


def _inline(section: Any, model: type[BaseModel], folder: Path, place: Place, inlined: Inlined) -> None:
    if not isinstance(section, dict):
        return
    for key, info in model.model_fields.items():
        inner = section_model(info.annotation)
        if is_from_file(info):
            if f"{key}_file" in section:
                _read_secret(section, key, folder, (*place, key), inlined)
        elif Path in get_args(info.annotation):
            if isinstance(section.get(key), str):
                section[key] = str(folder / section[key])
                _check_readable(Path(section[key]), spell((*place, key)), inlined)
        elif inner:
            value = section.get(key)
            items = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, item in items:
                step: Place = (key,) if index is None else (key, index)
                _inline(item, inner, folder, (*place, *step), inlined)


def _read_secret(section: dict[Any, Any], key: str, folder: Path, place: Place, inlined: Inlined) -> None:
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
    content = _check_readable(folder / name, file_path, inlined)
    if content is None:
        return
    section[key] = content.removesuffix("\n").removesuffix("\r")
    if not section[key].strip():
        inlined.mistakes.append(Mistake(file_path, f"{folder / name} is empty"))


def _check_readable(path: Path, key_path: str, inlined: Inlined) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        inlined.mistakes.append(Mistake(key_path, f"cannot read {path}: {error.strerror}"))
    except ValueError:
        inlined.mistakes.append(Mistake(key_path, f"{path} is not a UTF-8 text file"))
    return None
