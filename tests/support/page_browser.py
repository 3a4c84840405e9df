# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium and a visit to the status page with it, for tests that act as a person."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium; the test is skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A browser's page, and what it complained about and asked for.

    Attributes
    ----------
    page : Page
        Playwright's page.
    url : str
        The address of the status page, with its last slash.
    said : list[str]
        Errors and warnings in the console, and requests that failed.
    asked : set[str]
        Every address that was asked for.
    """

    page: Any
    url: str
    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def begin(self, token: str = "") -> None:
        """Listen, open the page, and sign in if there is a token."""
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("requestfailed", self._note_failed)
        self.page.goto(self.url)
        if token:
            self.page.fill("#token", token)
            self.send("text=Sign in")

    def decide(self, decision: str, *, by: str, note: str = "") -> str:
        """Fill in and send the form of the version that waits; return what the page says then."""
        self.page.check(f"[name=decision][value={decision}]")
        self.page.fill("#approval-by", by)
        self.page.fill("#approval-note", note)
        return self.send("text=Record the decision")

    def send(self, button: str) -> str:
        """Click what loads the page anew; return what it says then, if anything."""
        with self.page.expect_navigation():
            self.page.click(button)
        return self.message()

    def message(self) -> str:
        """What became of the last form."""
        said = self.page.locator(".message")
        return str(said.inner_text()) if said.count() else ""

    def tab_to(self, what: str) -> None:
        """Press Tab until something is focused, as a person without a mouse does."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if self.page.locator(f"{what}:focus").count():
                return
        raise AssertionError(f"Tab does not lead to {what}")

    def complaints(self) -> list[str]:
        """What a page that is well and needs nothing from elsewhere does not have."""
        return self.said + [address for address in self.asked if not address.startswith(self.url)]

    def _note_failed(self, request: Any) -> None:
        # What a page asks for after it is loaded is given up where the next one is.
        later = request.url.endswith(("/page/live", "/page/icon.svg"))
        if not (later and "ABORTED" in str(request.failure)):
            self.said.append(request.url)

    def _listen(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.said.append(message.text)
