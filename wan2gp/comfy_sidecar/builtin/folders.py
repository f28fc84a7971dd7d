"""The three folders of the server, the names that point into them, and the names of the files it writes."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

_ANNOTATION = re.compile(r"^(?P<name>.*) \[(?P<kind>input|output|temp)\]$", re.DOTALL)


@dataclass(frozen=True)
class SavePlace:
    """Where a node writes: `folder/name_00001…`; `subfolder` and `kind` are what the API reports."""

    folder: Path
    name: str
    subfolder: str
    kind: str

    def next_counter(self, ending: str) -> int:
        """One more than the largest number in use. `ending` is the pattern after the digits."""
        pattern = re.compile(rf"{re.escape(self.name)}_(\d+){ending}", re.IGNORECASE)
        matches = (pattern.fullmatch(entry) for entry in os.listdir(self.folder))
        return max((int(found.group(1)) for found in matches if found), default=0) + 1

    def entry(self, filename: str) -> dict[str, object]:
        return {"filename": filename, "subfolder": self.subfolder, "type": self.kind}


@dataclass(frozen=True)
class Folders:
    input: Path
    output: Path
    temp: Path

    def prepare(self) -> None:
        """Temporary files of an earlier server are deleted, as ComfyUI does."""
        self.wipe_temp()
        for folder in (self.input, self.output, self.temp):
            folder.mkdir(parents=True, exist_ok=True)

    def wipe_temp(self) -> None:
        shutil.rmtree(self.temp, ignore_errors=True)

    def by_type(self, kind: str | None) -> Path | None:
        return {"input": self.input, "output": self.output, "temp": self.temp}.get(kind or "")

    def split_annotated(self, name: str) -> tuple[str, Path | None]:
        """`x.png [output]` is x.png of the output folder; a plain name has no folder of its own."""
        found = _ANNOTATION.match(name)
        return (found["name"], self.by_type(found["kind"])) if found else (name, None)

    def resolve(self, name: str) -> Path | None:
        """The existing file a node's widget names, None for a missing one or one outside its folder."""
        plain, folder = self.split_annotated(name)
        root = folder or self.input
        path = Path(os.path.abspath(root / plain))
        return path if is_inside(root, path) and path.is_file() else None

    def listed_inputs(self, suffixes: tuple[str, ...]) -> list[str]:
        """Files at the top of the input folder, for a node's drop-down list."""
        names = (entry.name for entry in os.scandir(self.input) if entry.is_file())
        return sorted(name for name in names if name.lower().endswith(suffixes))

    def place(self, prefix: str, kind: str, width: int, height: int) -> SavePlace:
        """Makes the folder for `filename_prefix`. Raises for a prefix that leads out of the root."""
        root = self.output if kind == "output" else self.temp
        prefix = _fill_in(prefix, width, height)
        subfolder = os.path.dirname(os.path.normpath(prefix))
        folder = Path(os.path.abspath(root / subfolder))
        if not is_inside(root, folder):
            # The class and the text are what the API shows as exception_type and exception_message.
            raise Exception(
                "**** ERROR: Saving image outside the output folder is not allowed."
                f"\n full_output_folder: {folder}\n         output_dir: {root}"
                f"\n         commonpath: {os.path.commonpath((root, folder))}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return SavePlace(folder, os.path.basename(os.path.normpath(prefix)), subfolder, kind)


def is_inside(root: Path, path: Path) -> bool:
    return os.path.commonpath((root, path)) == str(root)


def _fill_in(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {"year": now.tm_year, "month": now.tm_mon, "day": now.tm_mday}
    values |= {"hour": now.tm_hour, "minute": now.tm_min, "second": now.tm_sec}
    for key, value in values.items():
        prefix = prefix.replace(f"%{key}%", f"{value:02}")
    return prefix.replace("%width%", str(width)).replace("%height%", str(height))
