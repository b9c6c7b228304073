"""Watches the catalog's file and hands each new, valid catalog on.

On the path of a reconcile: operator -> ConfigMap -> kubelet -> this file -> `residency.manager`. The kubelet swaps a
symbolic link in the folder, so the folder is watched; a slow poll repairs what a watch may miss.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from watchfiles import awatch

from tandem_api.catalog import Catalog

_log = logging.getLogger(__name__)
POLL_SECONDS = 10.0


class CatalogError(Exception):
    """A file that holds no catalog, and why, in one line."""


def read_catalog(path: Path) -> Catalog:
    """Reads the file. Raises CatalogError."""
    try:
        return Catalog.read(path.read_bytes())
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CatalogError(f"{path} is no catalog: {where}: {first['msg']}") from error


class CatalogWatcher:
    """Follows one file for as long as `run` runs.

    Args:
        apply: called with each catalog that differs from the one before.
    """

    def __init__(self, path: Path, apply: Callable[[Catalog], None], poll_seconds: float = POLL_SECONDS) -> None:
        self._path = path
        self._apply = apply
        self._poll_seconds = poll_seconds
        self._last: Catalog | None = None
        self._told = ""

    def look(self) -> None:
        """Reads the file once; a bad one is told once and changes nothing."""
        try:
            catalog = read_catalog(self._path)
        except CatalogError as error:
            if str(error) != self._told:
                self._told = str(error)
                kept = "the last good catalog stays in use" if self._last else "nothing is served until it is there"
                _log.error("The catalog cannot be used: %s. %s.", error, kept[:1].upper() + kept[1:])
            return
        self._told = ""
        if catalog == self._last:
            return
        self._last = catalog
        names = ", ".join(model.name for model in catalog.models) or "none"
        _log.info("Read catalog %s with models: %s.", catalog.revision or "(without a revision)", names)
        self._apply(catalog)

    async def run(self) -> None:
        """Follows the file until cancelled."""
        stop = asyncio.Event()
        try:
            await asyncio.gather(self._watch(stop), self._poll())
        finally:
            stop.set()

    async def _poll(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._poll_seconds)

    async def _watch(self, stop: asyncio.Event) -> None:
        folder = self._path.parent
        while True:
            try:
                async for _ in awatch(folder, stop_event=stop, recursive=False, debounce=100, rust_timeout=1000):
                    self.look()
            except (OSError, RuntimeError) as error:
                _log.warning(
                    "The folder %s cannot be watched (%s); it is looked at every %g s.",
                    folder,
                    error,
                    self._poll_seconds,
                )
            await asyncio.sleep(self._poll_seconds)
