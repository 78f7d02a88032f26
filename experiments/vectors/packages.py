"""Packages of fonts and icons as `npm pack` leaves them: where they lie, what is in them, under which licence."""

import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.files import UserError, newest


@dataclass(frozen=True)
class Package:
    """A package: its name on npm, "@fontsource/NAME" or "@iconify-json/NAME", and its file."""

    name: str
    file: Path

    @property
    def short(self) -> str:
        return self.name.rpartition("/")[2]

    def names(self) -> list[str]:
        """Returns the names of the files in it. Raises UserError if it is damaged."""
        with self.opened() as archive:
            return archive.getnames()

    def read(self, *names: str) -> list[bytes]:
        """Returns the contents of some of its files. Raises UserError if it is damaged or lacks one."""
        return list(self.contents(names))

    def contents(self, names: tuple[str, ...]) -> Iterator[bytes]:
        with self.opened() as archive:
            for name in names:
                file = archive.extractfile(f"package/{name}")
                assert file is not None
                yield file.read()

    def json(self, name: str) -> Any:
        return json.loads(self.read(name)[0])

    @contextmanager
    def opened(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self.file) as archive:
                yield archive
        except (OSError, EOFError, KeyError, AssertionError, ValueError, tarfile.TarError, zlib.error) as error:
            raise UserError(
                f"the package {self.file} is damaged ({error}): {fetch(self.file.parent, self.name)} again"
            ) from error


def find(folder: Path, name: str) -> Package:
    """Returns a package. Raises UserError, saying how to get it, if its .tgz is not in the folder."""
    found = newest(folder.glob(f"{name.removeprefix('@').replace('/', '-')}-[0-9]*.tgz"))
    if found is None:
        raise UserError(f"the package {name} is missing: {fetch(folder, name)}")
    return Package(name, found)


def fetch(folder: Path, name: str) -> str:
    """Tells the user how to get a package."""
    return f"run `npm pack {name}` in {folder}"


def credit(package: Package) -> dict[str, str]:
    """Returns whose work a package is: name, title, authors, licence (its SPDX name)."""
    if package.name.startswith("@fontsource/"):
        about, (licence,) = package.json("metadata.json"), package.read("LICENSE")
        authors = licence.decode(errors="replace").splitlines()[0].partition("(http")[0]
        authors = re.sub(r"\s*[(<]\S+@\S+[)>]", "", authors).strip()
        authors = authors if any(map(str.isalpha, authors)) else "see its LICENSE"
        return {"name": package.name, "title": about["family"], "authors": authors, "licence": about["license"]["type"]}
    about = package.json("info.json")
    return {
        "name": package.name,
        "title": about["name"],
        "authors": about["author"]["name"],
        "licence": about["license"]["spdx"],
    }
