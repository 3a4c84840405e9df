# SPDX-License-Identifier: Apache-2.0
"""The page's script: local times, and what is new without a reload. The page works without it.

A Python file, since Flower's bundle of an app includes no `.js` file.
"""

from __future__ import annotations

SCRIPT = r""""use strict";
(() => {
  const EVERY = 4000;
  const day = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "short" });
  const named = new Intl.DateTimeFormat(undefined, { hour: "2-digit", timeZoneName: "short" });

  function zoneOf(moment) {
    const part = named.formatToParts(moment).find((each) => each.type === "timeZoneName");
    return part ? part.value : "";
  }

  function localTimes(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const moment = new Date(time.dateTime);
      if (!Number.isNaN(moment.valueOf())) {
        time.title = moment.toISOString().slice(0, 19).replace("T", " ") + " UTC";
        time.textContent = `${day.format(moment)} ${zoneOf(moment)}`;
      }
    }
  }

  async function fetched(address) {
    const reply = await fetch(address, { credentials: "same-origin", cache: "no-store" });
    if (!reply.ok) throw new Error(String(reply.status));
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    localTimes(page);
    return page;
  }

  // What somebody is about to type, or to choose, must not go.
  function inUse(part) {
    const focused = part.contains(document.activeElement) &&
      document.activeElement.matches("input, select, textarea, button");
    const changed = [...part.querySelectorAll("form[method=post] input, form[method=post] select")]
      .some((each) => each.type === "radio" || each.type === "checkbox"
        ? each.checked !== each.defaultChecked
        : each.tagName === "SELECT"
          ? each.selectedIndex > 0 && !each.options[each.selectedIndex].defaultSelected
          : each.type !== "hidden" && each.value !== each.defaultValue);
    return focused || changed;
  }

  function exchange(page) {
    for (const id of ["main", "read"]) {
      const [old, fresh] = [document.getElementById(id), page.getElementById(id)];
      if (!old || !fresh) continue;
      const open = [...old.querySelectorAll("details")].map((each) => each.open);
      const message = old.querySelector(".message[tabindex]");
      old.replaceChildren(...fresh.childNodes);
      if (message) old.prepend(message);
      old.querySelectorAll("details").forEach((each, n) => { each.open = Boolean(open[n]); });
    }
  }

  function say(sentence) {
    const place = document.getElementById("news");
    if (place && place.textContent !== sentence) place.textContent = sentence;
  }

  async function look() {
    if (document.hidden) return;
    const live = document.getElementById("live");
    try {
      const fresh = (await fetched("/page/live")).getElementById("live");
      if (!fresh) {
        say("You are signed out; load the page again.");
      } else if (fresh.dataset.mark === live.dataset.mark) {
        live.replaceChildren(...fresh.childNodes);
        say("");
      } else if (inUse(document.getElementById("main"))) {
        const mark = live.dataset.mark;
        live.replaceChildren(...fresh.childNodes);
        live.dataset.mark = mark;
        say("Something changed since this page was read. Send the form, or refresh.");
      } else {
        exchange(await fetched(location.href));
        say("");
      }
    } catch {
      say("The server does not answer; what is shown here may be old.");
    }
  }

  localTimes(document);
  const zone = document.getElementById("zone");
  if (zone) zone.textContent = `Times are of this browser's zone, ${zoneOf(new Date())}.`;
  if (document.getElementById("live")) setInterval(look, EVERY);
})();
"""
