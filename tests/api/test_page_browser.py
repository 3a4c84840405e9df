# SPDX-License-Identifier: Apache-2.0
"""The status page in headless Chromium: by keyboard, without scripts, in all looks, and for axe.

One server shows one registry after another, to one browser. ``FL_APP_SCREENSHOTS=docs`` writes the
screenshots there, those of other pages and states into ``states``; else they go with the test.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.api_client import TOKEN
from support.page_browser import Visit, chromium
from support.page_story import Story

from fl_app.api import create_trigger_api, serve_api
from fl_app.events import RejectedReply
from fl_app.progress import SessionProgress
from fl_registry import InMemoryModelStore, ModelStore, StoreUnavailable

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
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, fetched once by npm and checked."""
    # Not in pytest's cache, which may be off; npm has one of its own.
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fl-app-tests"
    packed = folder / f"{AXE.replace('@', '-')}.tgz"
    if not packed.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, which fetches axe-core")
        made = tmp_path_factory.mktemp("axe")
        subprocess.run(["npm", "pack", AXE, "--silent"], cwd=made, check=True, timeout=120)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(made / packed.name, packed)
    digest = hashlib.sha512(packed.read_bytes()).digest()
    assert base64.b64encode(digest).decode() == AXE_SHA512
    with tarfile.open(packed) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


@pytest.fixture
def url(story: Story) -> Iterator[str]:
    server = serve_api(app_of(story, story.store), port=0)
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


def test_no_registry_and_no_width_breaks_the_page_and_axe_finds_no_fault(
    browser: Any, story: Story, axe: str
) -> None:
    shown = Shown(story)
    server = serve_api(shown, port=0)  # type: ignore[arg-type]
    assert server is not None
    context = browser.new_context(viewport={"width": 1180, "height": 800}, timezone_id="Asia/Tokyo")
    visit = Visit(context.new_page(), f"http://127.0.0.1:{server.port}/")
    page = visit.page
    folder = Path(os.environ.get("FL_APP_SCREENSHOTS") or story.folder)
    states_folder = folder / "states"
    visit.begin()
    assert faults(page, axe) == []
    page.get_by_label("Token").fill(TOKEN)
    visit.send("text=Sign in")
    for look, (scheme, width, height) in LOOKS.items():
        page.goto(f"{visit.url}page/live")  # where no chart is fetched in the colours before
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(visit.url)
        shoot(page, folder / f"page-{look}.png", height)
        assert faults(page, axe) == []
    # Times are of the browser's zone, with its name.
    assert page.locator("#read time").inner_text().endswith("GMT+9")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.click("#retraining button")  # the browser asks for what is missing
    assert page.locator("#trigger-reason:invalid").count() == 1
    for path in (
        "page/version?version=24",
        "page/compare?first=8&second=24",
        "page/versions?sort=best",
        "page/models",
        "docs",
    ):
        page.goto(visit.url + path)
        page.wait_for_load_state()
        assert page.locator("h1").count() == 1, path
        assert faults(page, axe) == [], path
        fits(page, path)
        page.screenshot(path=states_folder / f"{path.partition('?')[0].rpartition('/')[2]}.png")
    for name, shown.app in states(story):
        page.goto(visit.url)
        page.wait_for_load_state()
        if name not in ("200", "1000", "silent"):  # which have nothing of another kind
            assert faults(page, axe) == [], name
        fits(page, name)
        page.screenshot(path=states_folder / f"{name}.png", full_page=True)
        for row in page.locator("#ledger tbody tr, #versions tbody tr").all()[:3]:
            box = row.locator("td.text").bounding_box()  # the reason is in view
            assert box is None or box["x"] + box["width"] <= 1280, name
    assert "It does not verify" in page.locator("#ledger").inner_text()  # of the last one
    assert visit.complaints() == []
    context.close()
    server.close()


def test_what_is_new_comes_without_a_reload_and_typing_is_not_disturbed(
    browser: Any, story: Story
) -> None:
    shown = Shown(story)
    server = serve_api(shown, port=0)  # type: ignore[arg-type]
    assert server is not None
    context = browser.new_context()
    visit = Visit(context.new_page(), f"http://127.0.0.1:{server.port}/")
    visit.begin(TOKEN)
    page = visit.page
    assert page.locator("#session").count() == 0
    shown.live = progress(story, round=3)
    page.wait_for_selector("#session", timeout=15_000)
    assert "in round 3 of 8" in page.locator("#session").inner_text()
    page.fill("#approval-note", "looks go")
    story.store.rollback("15", actor="Grace Hopper", reason="meanwhile")
    page.wait_for_selector("#news:not(:empty)", timeout=15_000)
    assert page.input_value("#approval-note") == "looks go"
    page.fill("#approval-note", "")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_selector("#ledger td:has-text('meanwhile')", timeout=15_000)
    assert "Version 15" in page.locator("article").first.inner_text()
    assert visit.complaints() == []
    context.close()
    server.close()


class Shown:
    """An app for a server, which can be exchanged while it is up.

    Attributes
    ----------
    app : Flask
        What answers now.
    live : SessionProgress | None
        The session that its page shows.
    """

    def __init__(self, story: Story) -> None:
        self.live: SessionProgress | None = None
        self.app = app_of(story, story.store, live=lambda: self.live)
        self.extensions = self.app.extensions

    def __call__(self, environ: Any, start: Any) -> Any:
        return self.app(environ, start)


def app_of(story: Story, store: ModelStore, **more: Any) -> Flask:
    """Make an app, by default with a token."""
    more.setdefault("token", TOKEN)
    return create_trigger_api(story.manager, store=store, now=story.time, **more)


def progress(story: Story, **changes: Any) -> SessionProgress:
    """A session under way, with nodes that were rejected for long reasons."""
    now = story.time()
    reason = "its array 'model.22.cv3.0.2.bias' is (7,), expected (6,); " * 3
    bad = tuple(RejectedReply(f"9{n}" * 9, "train", reason, n) for n in (1, 2))
    known: dict[str, Any] = {
        "run_id": "r" * 32, "trigger": "new pictures from the north camera",
        "parent_version": "8", "num_rounds": 8, "round": 5, "phase": "train", "requested": 12,
        "answered": 9, "nodes": tuple(f"{n}" * 19 for n in range(1, 8)), "rejected": bad[:1],
        "rejected_before": bad, "round_seconds": 140.0, "started": now, "round_started": now,
        "written": now,
    }  # fmt: skip
    return SessionProgress("s", **{**known, **changes})


def states(story: Story) -> Iterator[tuple[str, Flask]]:
    """Registries of all sizes and in all conditions; each is shown without a token."""

    def app(store: ModelStore, **more: Any) -> Flask:
        return app_of(story, store, token=None, **more)

    yield "0", app(InMemoryModelStore())
    for count in (8, 200, 1000):
        yield str(count), app(many(story, count))
    long = many(story, 8, name="long-" * 20, reason="because " + "x" * 300 + " of it " * 40)
    long.promote_to_production("3", actor="a-very-long-name-" * 6, reason="y" * 400)
    yield "long", app(long)
    yield "run", app(story.store, live=lambda: progress(story))
    silent = progress(story, written=story.time() - timedelta(hours=1))
    yield "silent", app(story.store, live=lambda: silent)
    down = InMemoryModelStore()
    down.history = out_of_reach  # type: ignore[method-assign]
    yield "down", app(down)
    texts = story.store.backend.journal.texts
    texts[2] = texts[2].replace("Ada", "Eve")
    yield "altered", app(story.store)


def out_of_reach(**_: object) -> Any:
    raise StoreUnavailable("MLflow at http://mlflow:5000 does not answer; start it.")


def many(story: Story, count: int, *, name: str = "", reason: str = "") -> InMemoryModelStore:
    """A registry with so many versions, which are copies of one but for their numbers."""
    store = InMemoryModelStore(story.folder / f"many-{count}-{len(name)}")
    file = story.folder / "weights.safetensors"
    tags = {"metric": f"{name}mAP50", "round": "1", "reason": reason or "the best so far"}
    metrics = {f"{name}mAP50": 0.1, f"{name}mAP50/{name}ship": 0.2}
    store.save_model_version(file, metrics=metrics, tags=tags)
    first = store.backend.stored["1"]
    for number in range(2, count + 1):
        score = {**first.metrics, f"{name}mAP50": 1 - 0.9 * 0.99**number}
        tags = {**first.tags, "round": str(number % 8 + 1)}
        session = f"{number // 8}"
        store.backend.stored[str(number)] = replace(
            first, version=str(number), metrics=score, tags=tags, run_id=session
        )
    store.backend.saved = count
    # Their files are that of the first one.
    for number in (3, 5, count):
        folder = store.backend.scratch
        shutil.copytree(folder / "1", folder / str(number), dirs_exist_ok=True)
    for number in (3, 5):
        store.promote_to_production(str(number), actor="Ada", reason=reason or "better")
    store.promote_to_staging(str(count), actor="policy", reason=reason or "the best so far")
    return store


def fits(page: Any, what: str) -> None:
    """Nothing scrolls sideways on a telephone, a notebook and a large screen."""
    for width in (390, 1920, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (what, width)


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
