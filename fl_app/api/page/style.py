# SPDX-License-Identifier: Apache-2.0
"""The page's colours and style sheet, light and dark, wide and narrow.

A Python file, since Flower's bundle of an app includes no `.css` file.
"""

from __future__ import annotations

COLOURS = {
    "ground": ("#f5f6f8", "#10151b"),
    "card": ("#ffffff", "#181f27"),
    "soft": ("#eef1f5", "#222b35"),
    "text": ("#1b2129", "#e5e9ee"),
    "muted": ("#59636f", "#a0abb8"),
    "line": ("#d5dae1", "#333d49"),
    "grid": ("#e6e9ee", "#262f39"),
    "accent": ("#1f5fbf", "#7db4ff"),
    "on-accent": ("#ffffff", "#0c1a2e"),
    "good": ("#17693a", "#73d296"),
    "good-ground": ("#e5f4ea", "#15301f"),
    "warn": ("#7d4e00", "#f0c266"),
    "warn-ground": ("#fdf1d8", "#33270d"),
    "bad": ("#b3261e", "#ff9a92"),
    "bad-ground": ("#fdeceb", "#3a1a19"),
}
"""Each colour in the light and in the dark look; the chart has them too."""

_VARIABLES = "".join(f" --{name}: light-dark({', '.join(two)});" for name, two in COLOURS.items())
STYLE = (
    f":root {{ color-scheme: light dark;{_VARIABLES} }}"
    + r"""
*, ::before, ::after { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
header.top, nav.sections, main, footer {
  max-width: 70rem; margin-inline: auto; padding-inline: 1rem;
}
h1, h2, h3 { line-height: 1.25; text-wrap: balance; margin: 0 0 .75rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; }
h3 { font-size: 1rem; }
p { margin: 0 0 .75rem; }
a { color: var(--accent); }
code { font: .875em ui-monospace, "DejaVu Sans Mono", monospace; }
.muted, .hint, dt, caption, figcaption, thead th { color: var(--muted); }
.hint, caption, figcaption, footer, thead th, .tools p, .chip { font-size: .875rem; }

:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
main:focus, .message:focus { outline: none; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; z-index: 1; padding: .5rem 1rem; background: var(--card); }

header.top, .tools, nav.sections ul, dl.facts, dl.facts div, form.inline, .choice {
  display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center;
}
header.top { justify-content: space-between; padding-top: 1.25rem; }
.tools p, h1, dl, dd, figure { margin: 0; }
nav.sections ul { list-style: none; padding: 0 0 .5rem; border-bottom: 1px solid var(--line); }
nav.sections a { display: inline-block; padding: .25rem 0; }
main:not(.narrow) > * { margin-block: 1.5rem; }
footer { padding-block: 1rem 2rem; }

.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
}
.cards, .pair, form.fields { display: grid; gap: 1rem; }
.cards, .pair { grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.cards + .card, .scroll.card + .scroll.card, dl + .scroll, details { margin-top: 1rem; }
.card > :last-child { margin-bottom: 0; }
.attention { border-left: 5px solid var(--warn); }
main.narrow { max-width: 26rem; margin: 10vh auto 0; }
.big { font-size: 1.125rem; font-weight: 600; }
dl div { display: grid; grid-template-columns: 5rem 1fr; gap: .5rem; }
dl.facts { margin-bottom: 1rem; }

.chip {
  padding: .0625rem .5rem; border-radius: 1rem; background: var(--soft); color: var(--text);
  white-space: nowrap; font-weight: 600;
}
.chip.none, .chip.archived, .chip.joined, .chip.suppressed { color: var(--muted); }
.chip.production, .chip.done, .message.done, .verified.good {
  background: var(--good-ground); color: var(--good);
}
.chip.pending, .chip.suggested { background: var(--warn-ground); color: var(--warn); }
.chip.failed, .message.refused, .verified.bad { background: var(--bad-ground); color: var(--bad); }
.message, .verified { padding: .625rem 1rem; border-radius: 8px; border: 1px solid; }

.scroll { overflow-x: auto; }
.scroll.card { padding: 0; max-height: 27rem; }
.scroll.card thead th { position: sticky; top: 0; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; overflow-wrap: normal; }
caption { text-align: left; padding: .5rem 1rem; }
th, td {
  text-align: left; padding: .5rem .75rem; vertical-align: top;
  border-top: 1px solid var(--grid);
}
/* Every cell may wrap, so that the last one, the reason, is never out of sight. */
td { overflow-wrap: anywhere; min-width: 5rem; }
td.num, td.short { min-width: 0; }
td.short, .chip { white-space: nowrap; }
td.text { min-width: 16rem; }
meter { width: 8rem; vertical-align: middle; }
.num { font-variant-numeric: tabular-nums; }

label, legend { font-weight: 600; }
.field label .muted, .choice, .score { font-weight: 400; }
.field label { display: block; margin-bottom: .25rem; }
input:not([type=radio], [type=checkbox], [type=hidden]), select {
  width: 100%; padding: .5rem; font: inherit; color: inherit; background: var(--ground);
  border: 1px solid var(--muted); border-radius: 6px;
}
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
legend { padding: 0; }
.choice { flex-wrap: nowrap; padding: .25rem 0; }
.choice input { width: 1.125rem; height: 1.125rem; flex: none; accent-color: var(--accent); }
button, .button {
  justify-self: start; padding: .5rem 1rem; font: inherit; font-weight: 600; border-radius: 6px;
  border: 1px solid transparent; background: var(--accent); color: var(--on-accent);
  cursor: pointer; text-decoration: none; line-height: 1.375;
}
.quiet {
  background: var(--card); color: var(--text); border-color: var(--line); font-weight: 400;
}
.danger { background: var(--bad); color: var(--card); }
form.inline { margin-bottom: .75rem; }
form.inline select { width: auto; max-width: 100%; }

progress { width: 100%; max-width: 30rem; accent-color: var(--accent); margin-bottom: .75rem; }
dl.wide div { grid-template-columns: 8rem 1fr; }
.inline input:not([type=hidden]) { width: auto; }
.pages { display: flex; gap: 1rem; }
.pictures { display: grid; gap: 1rem; }
.pictures { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure img { max-width: 100%; height: auto; display: block; }
pre { overflow-x: auto; margin: 0; padding: .75rem; background: var(--soft); border-radius: 6px; }
#news:empty { display: none; }
#news { max-width: 70rem; margin: 0 auto; padding: .5rem 1rem; }
main.live { padding-top: 1rem; }
.chart { display: block; width: 100%; min-width: 36rem; height: auto; }
summary { cursor: pointer; }

/* On a narrow screen each row is a block with the names of its columns, and nothing is cut off. */
@media (max-width: 46rem) {
  table.rows, table.rows tbody, table.rows tr, table.rows caption { display: block; }
  table.rows thead { position: absolute; left: -100rem; }
  table.rows tr { border-top: 1px solid var(--line); padding: .375rem 0; }
  table.rows th, table.rows td {
    display: block; border: 0; padding: .125rem 1rem; min-width: 0; white-space: normal;
  }
  table.rows td[data-head]::before { content: attr(data-head) ": "; color: var(--muted); }
  table.rows td:empty { display: none; }
}
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
@media print { .scroll.card { max-height: none; } nav, form, .tools { display: none; } }
@media (forced-colors: active) { .chip, .message, .verified { border: 1px solid; } }
"""
)
