# SPDX-License-Identifier: Apache-2.0
"""The page's style sheet, light and dark, wide and narrow; `chart.py` repeats its colours."""

from __future__ import annotations

STYLE = r"""
:root {
  color-scheme: light dark;
  --ground: #f5f6f8; --card: #ffffff; --text: #1b2129; --muted: #59636f; --line: #d5dae1;
  --accent: #1f5fbf; --on-accent: #ffffff; --grid: #e6e9ee;
  --good: #17693a; --good-ground: #e5f4ea; --warn: #7d4e00; --warn-ground: #fdf1d8;
  --bad: #b3261e; --bad-ground: #fdeceb; --soft: #eef1f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #10151b; --card: #181f27; --text: #e5e9ee; --muted: #a0abb8; --line: #333d49;
    --accent: #7db4ff; --on-accent: #0c1a2e; --grid: #262f39;
    --good: #73d296; --good-ground: #15301f; --warn: #f0c266; --warn-ground: #33270d;
    --bad: #ff9a92; --bad-ground: #3a1a19; --soft: #222b35;
  }
}
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
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: 0 0 .75rem; }
a { color: var(--accent); }
code { font: .875em ui-monospace, "DejaVu Sans Mono", monospace; }
.muted, .hint { color: var(--muted); }
.hint { font-size: .875rem; margin: .25rem 0 0; }

:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
main:focus, .message:focus { outline: none; }
.skip { position: absolute; left: -100rem; }
.skip:focus {
  left: 1rem; top: .5rem; z-index: 1; padding: .5rem 1rem; border-radius: 6px;
  background: var(--card);
}

header.top {
  display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; justify-content: space-between;
  padding-top: 1.25rem;
}
.brand { margin: 0; color: var(--muted); font-size: .875rem; font-weight: 600; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
.tools p { margin: 0 .25rem 0 0; font-size: .875rem; }
nav.sections { margin-top: .75rem; }
nav.sections ul {
  display: flex; flex-wrap: wrap; gap: 0 1.25rem; list-style: none; margin: 0;
  padding: .25rem 0 .5rem; border-bottom: 1px solid var(--line);
}
nav.sections a { display: inline-block; padding: .25rem 0; }
main:not(.narrow) > * { margin-block: 1.5rem; }
footer { padding-block: 1rem 2rem; font-size: .875rem; }

.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.125rem; margin-inline: 0;
}
.cards {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr));
}
.cards + .card { margin-top: 1rem; }
.card > :last-child { margin-bottom: 0; }
.attention { border-left: 5px solid var(--warn); }
main.narrow { max-width: 26rem; margin: 10vh auto 0; }
main.narrow h1 { margin-bottom: .75rem; }
.big { font-size: 1.125rem; font-weight: 600; margin-bottom: .5rem; }
.score { font-weight: 400; }
dl { margin: 0; }
dl div { display: grid; grid-template-columns: 5rem 1fr; gap: .5rem; }
dl.facts { display: flex; flex-wrap: wrap; gap: .25rem 2rem; margin-bottom: 1rem; }
dl.facts div { display: flex; gap: .5rem; }
dt { color: var(--muted); }
dd { margin: 0; }
dl + p { margin-top: .5rem; }

.chip {
  display: inline-block; padding: .0625rem .5rem; border-radius: 1rem; font-size: .875rem;
  background: var(--soft); color: var(--text); white-space: nowrap; font-weight: 600;
}
.chip.production, .chip.done { background: var(--good-ground); color: var(--good); }
.chip.pending, .chip.suggested { background: var(--warn-ground); color: var(--warn); }
.chip.failed { background: var(--bad-ground); color: var(--bad); }
.chip.none, .chip.archived, .chip.joined, .chip.suppressed {
  color: var(--muted); font-weight: 400;
}
.message, .verified { padding: .625rem .875rem; border-radius: 8px; border: 1px solid; }
.message.done, .verified.good { background: var(--good-ground); color: var(--good); }
.message.refused, .verified.bad { background: var(--bad-ground); color: var(--bad); }

.scroll { overflow-x: auto; }
.scroll.card { padding: 0; max-height: 27rem; }
.scroll.card thead th { position: sticky; top: 0; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; overflow-wrap: normal; }
caption { text-align: left; padding: .625rem .875rem; color: var(--muted); font-size: .875rem; }
th, td {
  text-align: left; padding: .4375rem .875rem; vertical-align: top;
  border-top: 1px solid var(--grid);
}
thead th {
  color: var(--muted); font-weight: 600; font-size: .875rem; white-space: nowrap; border-top: 0;
}
tbody th { font-weight: 600; }
td { white-space: nowrap; }
td.text { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
time { white-space: nowrap; }
meter { width: 8rem; vertical-align: middle; }
.num { font-variant-numeric: tabular-nums; }

form.fields { display: grid; gap: .875rem; }
.pair {
  display: grid; gap: .875rem;
  grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr));
}
label, legend { font-weight: 600; }
.field label .muted { font-weight: 400; }
.field label { display: block; margin-bottom: .25rem; }
input:not([type=radio], [type=checkbox], [type=hidden]), select {
  width: 100%; padding: .5rem .625rem; font: inherit; color: inherit; background: var(--ground);
  border: 1px solid var(--muted); border-radius: 6px;
}
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
legend { padding: 0; margin-bottom: .25rem; }
.choice { display: flex; gap: .5rem; align-items: start; padding: .25rem 0; font-weight: 400; }
.choice input {
  width: 1.125rem; height: 1.125rem; margin: .1875rem 0 0; flex: none;
  accent-color: var(--accent);
}
button, .button {
  justify-self: start; padding: .5rem 1rem; font: inherit; font-weight: 600; border-radius: 6px;
  border: 1px solid transparent; background: var(--accent); color: var(--on-accent);
  cursor: pointer; text-decoration: none; line-height: 1.375;
}
button:hover, .button:hover { filter: brightness(1.08); }
.quiet {
  background: var(--card); color: var(--text); border-color: var(--line); font-weight: 400;
  padding: .3125rem .75rem;
}
.danger { background: var(--bad); color: var(--card); }
form.inline {
  display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-bottom: .75rem;
}
form.inline select { width: auto; max-width: 100%; padding: .3125rem .5rem; }

figure { margin: 0; }
.chart { display: block; width: 100%; min-width: 36rem; height: auto; }
figcaption { font-size: .875rem; color: var(--muted); margin-top: .5rem; }
figcaption p { margin: .375rem 0 0; }
details { margin-top: .75rem; }
summary { cursor: pointer; }

@media (max-width: 30rem) {
  .card { padding: .875rem; }
  .scroll.card { padding: 0; }
  td.text { min-width: 20rem; }
}
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
@media print { .scroll.card { max-height: none; } nav, form, .tools { display: none; } }
@media (forced-colors: active) { .chip, .message, .verified { border: 1px solid; } }
"""
