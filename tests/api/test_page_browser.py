# SPDX-License-Identifier: Apache-2.0
"""The status page in headless Chromium: by keyboard, without scripts, in all looks, and for axe.

``FL_APP_SCREENSHOTS=docs`` writes the screenshots there; otherwise they go with the test.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api_client import TOKEN
from support.page_browser import Visit, chromium
from support.page_story import Clock, Story

from fl_app.api import create_trigger_api, serve_api

pytestmark = pytest.mark.slow

AXE = "axe-core@4.14.1"
AXE_SHA512 = (
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
LOOKS = {"light": ("light", 1180, 1480), "dark": ("dark", 1180, 0), "narrow": ("light", 360, 1720)}
"""Colour scheme, width, and height of the screenshot; 0 for all of the page."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def axe(request: pytest.FixtureRequest) -> str:
    """axe-core's source, fetched once by npm and checked."""
    folder = Path(request.config.cache.mkdir("axe-core"))
    packed = folder / f"{AXE.replace('@', '-')}.tgz"
    if not packed.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, which fetches axe-core")
        subprocess.run(["npm", "pack", AXE, "--silent"], cwd=folder, check=True, timeout=120)
    digest = hashlib.sha512(packed.read_bytes()).digest()
    assert base64.b64encode(digest).decode() == AXE_SHA512
    with tarfile.open(packed) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    clock = Clock()
    clock.stop(monkeypatch)
    return Story(tmp_path, clock)


@pytest.fixture
def url(story: Story) -> Iterator[str]:
    server = serve_api(
        create_trigger_api(story.manager, store=story.store, token=TOKEN, now=story.time), port=0
    )
    assert server is not None
    yield f"http://127.0.0.1:{server.port}/"
    server.close()


def test_a_person_signs_in_and_decides_by_keyboard_without_any_script(
    browser: Any, story: Story, url: str
) -> None:
    context = browser.new_context(java_script_enabled=False)
    visit = Visit(context.new_page(), url)
    visit.begin()
    page, keys = visit.page, visit.page.keyboard
    visit.tab_to("#token")
    keys.type(TOKEN)
    keys.press("Enter")
    page.wait_for_selector("#now")
    page.wait_for_load_state()  # else the next page cancels the chart
    visit.tab_to("a.skip")
    keys.press("Enter")
    visit.tab_to("[value=approve]")
    keys.press("Space")
    visit.tab_to("#approval-by")
    keys.type("Ada Lovelace")
    visit.tab_to("#approval-note")
    keys.type("sees every ship")
    visit.tab_to("#approval button, .attention button")
    keys.press("Enter")
    page.wait_for_selector(".message")
    page.wait_for_load_state()
    assert visit.message() == "Done. Version 24 is approved and in Production now."
    entry = story.store.history()[-1]
    assert (entry.op, entry.version, entry.actor) == ("promote", "24", "Ada Lovelace")
    assert entry.reason == "sees every ship"
    assert page.locator("#ledger tbody tr").first.inner_text().split("\t")[0] == "10"

    page.select_option("#rollback-version", "8")
    page.fill("#rollback-note", "misses ships")
    page.click("text=Take version 24 out of Production now")
    assert visit.send("#rollback button") == "Done. Version 8 is back in Production."
    assert story.store.get_latest_version("Production") == "8"

    page.fill("#trigger-reason", "a new harbour")
    assert visit.send("#retraining button").startswith("Done. Retraining is requested.")
    asked = story.manager.trigger_history[-1]
    assert asked["reason"] == "a new harbour (requested by Ada Lovelace)"
    assert "a new harbour" in page.locator("#retraining tbody tr").first.inner_text()

    waiting = story.save(4, 1, 0.9)
    story.store.promote_to_staging(waiting)
    story.store.set_version_tags(waiting, {"approval": "pending"})
    visit.send("text=Refresh")
    assert visit.decide("reject", by="Grace Hopper", note="blurred") == (
        f"Done. Version {waiting} is rejected and archived."
    )
    assert story.store.get_version(waiting).stage == "Archived"

    page.select_option("#metric", "train/loss")
    visit.send("text=Show")
    assert page.url == f"{url}?metric=train%2Floss#curves"
    assert visit.send("text=Sign out") == "Done. You are signed out."
    assert "Token" in page.locator("main").inner_text()
    assert visit.complaints() == []
    context.close()


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_no_fault_in_any_look_and_nothing_scrolls_sideways(
    browser: Any, story: Story, url: str, axe: str, look: str
) -> None:
    scheme, width, height = LOOKS[look]
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    visit = Visit(context.new_page(), url)
    visit.begin()
    assert faults(visit.page, axe) == []
    visit.page.get_by_label("Token").fill(TOKEN)
    visit.send("text=Sign in")
    folder = Path(os.environ.get("FL_APP_SCREENSHOTS") or story.folder)
    shoot(visit.page, folder / f"page-{look}.png", height)
    visit.page.click("summary")
    assert faults(visit.page, axe) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    visit.page.click("#retraining button")  # the browser asks for what is missing
    assert visit.page.locator("#trigger-reason:invalid").count() == 1
    story.store.backend.journal.texts[2] = story.store.backend.journal.texts[2].replace(
        "Ada", "Eve"
    )
    visit.send("text=Refresh")
    assert "It does not verify" in visit.page.locator("#ledger").inner_text()
    assert faults(visit.page, axe) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    assert visit.complaints() == []
    context.close()


def faults(page: Any, axe: str) -> list[str]:
    """Run axe-core on the page as it is; return what it finds, however little it matters."""
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    return [
        f"{one['impact']}: {one['id']} at {[node['target'] for node in one['nodes']]}"
        for one in found["violations"]
    ]


def shoot(page: Any, path: Path, height: int) -> None:
    """Take a screenshot in 256 colours, which keeps the file small."""
    from PIL import Image

    page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        part = image.convert("RGB").crop((0, 0, image.width, height or image.height))
    part.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
