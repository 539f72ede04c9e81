"""Registries: things found by name, the package's own and those that other installed packages bring along.

Another package adds a thing by an entry point (docs/extend/):

    [project.entry-points."babelscope.rules"]
    my-rule = "my_package.my_module:MyRule"

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from babelscope.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: the noun for messages: `rule`.
        group: the entry point group that other packages register under: `babelscope.rules`.
        own: the package's own, name -> `module:attribute`, in the order in which they are listed.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str]) -> None:
        self.kind, self.group, self._own = kind, group, dict(own)

    @functools.cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        """The package's own first, then those of other packages by name; a name can't be taken twice."""
        entries = {name: EntryPoint(name, value, self.group) for name, value in self._own.items()}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: entry.name):
            if entry.name in entries and entries[entry.name].value != entry.value:
                raise ConfigError(
                    f"two packages bring a {self.kind} named {entry.name!r}: {entries[entry.name].value} and "
                    f"{entry.value}. Remove one of the packages."
                )
            entries[entry.name] = entry
        return entries

    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[T]:
        return iter([self[name] for name in self._entries])

    def __getitem__(self, name: str) -> T:
        """The thing of a name.

        Raises:
            ConfigError: there is none of that name, or its module can't be imported.
        """
        if name not in self._entries:
            raise ConfigError(f"wanted a {self.kind}, found {name!r}. {did_you_mean(name, self._entries)}")
        return self._load(name)

    def _load(self, name: str) -> T:
        entry = self._entries[name]
        if name in self._own:
            return cast(T, getattr(importlib.import_module(entry.module), entry.attr))
        try:
            thing: Any = entry.load()
        except Exception as error:
            raise ConfigError(
                f"the {self.kind} {name!r} of another package ({entry.value}) can't be loaded: "
                f"{type(error).__name__}: {error}. Mend or remove that package."
            ) from error
        return cast(T, thing)
