# SPDX-License-Identifier: Apache-2.0
"""Templates of what the registry holds: stages, approval, curves, versions, rollback, ledger."""

from __future__ import annotations

CHART = """\
<svg class="chart" viewBox="0 0 {{ curves.WIDTH }} {{ curves.HEIGHT }}" role="img"
 aria-labelledby="chart-title chart-summary">
<title id="chart-title">{{ chart.metric }} by round</title>
<desc id="chart-summary">{{ chart.summary }}</desc>
{% for tick in chart.ticks %}
<path class="grid" d="M{{ curves.LEFT }} {{ tick.y }}H{{ curves.WIDTH - curves.RIGHT }}"/>
<text class="axis end" x="{{ tick.x }}" y="{{ tick.y + 4 }}">{{ tick.text }}</text>
{% endfor %}
{% for x in chart.borders %}
<path class="border" d="M{{ x }} {{ curves.TOP }}V{{ curves.HEIGHT - curves.BOTTOM + 22 }}"/>
{% endfor %}
{% for text in chart.rounds + chart.sessions %}
<text class="axis" x="{{ text.x }}" y="{{ text.y }}">{{ text.text }}</text>
{% endfor %}
<path class="served" d="{{ chart.served }}"/>
{% for line in chart.lines %}
<path class="curve" d="{{ line }}"/>
{% endfor %}
{% for point in chart.points %}
<circle class="{{ 'dot staged' if point.staged else 'dot' }}" cx="{{ point.x }}" cy="{{ point.y }}"
 r="{{ 4 if chart.points|length <= 60 else 2 }}"><title>Version {{ point.version }}, round
 {{ point.round }}: {{ point.score }}</title></circle>
{% endfor %}
{% for mark in chart.marks %}
<path class="{{ 'mark back' if mark.back else 'mark' }}"
 d="M{{ mark.x }} {{ mark.y - 7 }}l7 7l-7 7l-7 -7z"><title>Version {{ mark.version }}
 {{ "rolled back to" if mark.back else "promoted" }} {{ mark.time[:16] }}</title></path>
{% if mark.label %}
<text class="label" x="{{ mark.x }}" y="{{ mark.y - 11 }}">{{ mark.label }}</text>
{% endif %}
{% endfor %}
</svg>
"""

NOW = """\
{% from "parts" import hidden, text_input, your_name, fault, stage_chip %}
<section id="now" aria-labelledby="now-title">
<h2 id="now-title">Now</h2>
{{ fault(page.problem) }}
{{ fault(page.fault) }}
{% set held, trial = page.stages, page.probation %}
{% set fall = trial.last_failure if trial else none %}
{% if fall and (not fall.back or fall.back == trial.version) %}
<p class="verified bad"><strong>Version {{ fall.version }} failed</strong> {{ fall.time|when }}:
 {{ fall.reason }};
 {%- if fall.back %} version {{ fall.back }} came back by itself.
 {%- elif fall.back is none %} the one before is about to come back.
 {%- else %} there was none to bring back.{% endif %}</p>
{% endif %}
<div class="cards">
{% for title, one, nothing in (
  ("Production", held.production, "Nothing is in Production."),
  ("Staging", held.staging, "Nothing is in Staging."),
) %}
<article class="card" aria-labelledby="{{ title|lower }}-title">
<h3 id="{{ title|lower }}-title">{{ stage_chip(title, title == "Staging" and held.waiting) }}</h3>
{% if one %}
<p class="big">Version {{ one.version }} <span class="score">{{ one.score }}</span></p>
<dl>
{% if one.since %}<div><dt>Since</dt><dd>{{ one.since|when }}
 {%- if one.by %}, by {{ one.by }}{% endif %}</dd></div>{% endif %}
{% if one.why %}<div><dt>Why</dt><dd>{{ one.why }}</dd></div>{% endif %}
{% if one.gates and one.gates != one.why %}
<div><dt>Gates</dt><dd>{{ one.gates }}</dd></div>
{% endif %}
{% if title == "Production" and trial and trial.version == one.version %}
<div><dt>Probation</dt><dd>{{ phases.get(trial.phase, trial.phase) }}
 {%- if trial.phase == "watching" %} until {{ trial.until|when }} at least;
 {{ trial.reports }} of {{ trial.reports_needed }} reports were all right
 {%- if trial.critical_in_a_row %}, and the last {{ trial.critical_in_a_row }} critical{% endif %}
 {%- endif %}</dd></div>
{% endif %}
</dl>
{% else %}
<p class="muted">{{ "It cannot be told." if page.problem or page.fault else nothing }}</p>
{% endif %}
</article>
{% endfor %}
<article class="card" aria-labelledby="before-title">
<h3 id="before-title"><span class="chip">In Production before</span></h3>
{% if held.previous %}
{% set one = held.previous %}
<p class="big">Version {{ one.version }} <span class="score">{{ one.score }}</span></p>
<dl>
<div><dt>Came</dt><dd>{{ one.since|when }}{% if one.by %}, by {{ one.by }}{% endif %}</dd></div>
{% if one.why %}<div><dt>Why</dt><dd>{{ one.why }}</dd></div>{% endif %}
</dl>
<p><a href="#rollback">Roll back</a></p>
{% else %}
<p class="muted">Nothing was in Production before.</p>
{% endif %}
</article>
</div>
</section>

{% for one in held.waiting %}
<section id="approval" class="card attention" aria-labelledby="approval-{{ one.version }}">
<h2 id="approval-{{ one.version }}">Version {{ one.version }} waits for approval</h2>
<p>{{ one.gates }}</p>
<p class="muted">{{ one.score }}
 {%- if held.production and held.production.score %}; in Production is version
 {{ held.production.version }} with {{ held.production.score }}{% endif %}. Registered
 {{ one.created|when }}{% if one.made_by %}, from {{ one.made_by }}{% endif %}.</p>
<form method="post" action="/page/decide" class="fields">
{{ hidden(form, once(), one.version) }}
<fieldset>
<legend>Decision</legend>
<label class="choice"><input type="radio" name="decision" value="approve" required>
<span><strong>Approve</strong>: it goes to Production
 {%- if held.production %}, and version {{ held.production.version }} is archived
 {%- endif %}.</span></label>
<label class="choice"><input type="radio" name="decision" value="reject" required>
<span><strong>Reject</strong>: it is archived{% if held.production %}, and version
 {{ held.production.version }} stays{% endif %}.</span></label>
</fieldset>
<div class="pair">
{{ your_name("approval-by", name) }}
{{ text_input("approval-note", "note", "Note", required=False) }}
</div>
<button>Record the decision</button>
</form>
</section>
{% endfor %}

<section id="curves" aria-labelledby="curves-title">
<h2 id="curves-title">Scores by round</h2>
{% set chart = page.chart %}
{% if chart %}
{% if page.metrics|length > 1 %}
<form method="get" action="/#curves" class="inline">
<label for="metric">Metric</label>
<select id="metric" name="metric">
{% for one in page.metrics %}
<option{% if one == chart.metric %} selected{% endif %} value="{{ one }}">{{ one }}</option>
{% endfor %}
</select>
<button class="quiet">Show</button>
</form>
{% endif %}
<figure class="card">
<div class="scroll" tabindex="0" role="region" aria-label="Drawing of the scores">
{% include "chart" %}
</div>
<figcaption>
<ul class="legend">
<li><svg viewBox="0 0 26 12" aria-hidden="true"><path class="curve" d="M1 6H25"/>
<circle class="dot" cx="13" cy="6" r="4"/></svg> a version</li>
<li><svg viewBox="0 0 26 12" aria-hidden="true"><path class="curve" d="M1 6H25"/>
<circle class="dot staged" cx="13" cy="6" r="4"/></svg> one that went to Staging or on</li>
<li><svg viewBox="0 0 26 12" aria-hidden="true"><path class="served" d="M1 6H25"/></svg>
 in Production</li>
<li><svg viewBox="0 0 26 14" aria-hidden="true">
<path class="mark" d="M13 0l7 7l-7 7l-7 -7z"/></svg> promoted</li>
<li><svg viewBox="0 0 26 14" aria-hidden="true">
<path class="mark back" d="M13 0l7 7l-7 7l-7 -7z"/></svg> rolled back</li>
</ul>
<p>{{ chart.summary }}
 {%- if chart.left_out %} {{ chart.left_out }} older ones are not drawn.{% endif %}</p>
</figcaption>
<details>
<summary>The same as a table</summary>
<div class="scroll" tabindex="0" role="region" aria-labelledby="chart-table">
<table>
<caption id="chart-table">{{ chart.metric }} by round, newest first</caption>
<thead><tr><th scope="col">Version</th><th scope="col">Session of</th><th scope="col">Round</th>
<th scope="col">{{ chart.metric }}</th><th scope="col">Production</th></tr></thead>
<tbody>
{% for point in chart.points|reverse %}
<tr><th scope="row">{{ point.version }}</th><td>{{ point.session }}</td><td>{{ point.round }}</td>
<td class="num">{{ point.score }}</td>
<td>{% for mark in chart.marks if mark.version == point.version %}
{{- "rolled back to" if mark.back else "promoted" }} {{ mark.time|when }}{{ ", " if not loop.last }}
{%- endfor %}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
</figure>
{% else %}
<p class="muted">There is nothing to draw yet: <code>flwr run . --stream</code> makes versions with
 scores.</p>
{% endif %}
</section>

<section id="versions" aria-labelledby="versions-title">
<h2 id="versions-title">Versions</h2>
{% if held.versions %}
<div class="scroll card" tabindex="0" role="region" aria-labelledby="versions-table">
<table>
<caption id="versions-table">{{ held.total }} versions
 {%- if held.total > held.versions|length %}, of which the newest {{ held.versions|length }} are
 here (<code>fl-app versions</code> lists all){% endif %}</caption>
<thead><tr><th scope="col">Version</th><th scope="col">Stage</th><th scope="col">Score</th>
<th scope="col">Round</th><th scope="col">Registered</th><th scope="col">Why</th></tr></thead>
<tbody>
{% for row, why in held.versions %}
<tr><th scope="row">{{ row.version }}</th>
<td>{{ stage_chip(row.stage, row|pending) }}{% if row|pending %} <span class="muted">waits</span>
{%- elif row.tags.get("approval") in ("rejected", "superseded") %}
 <span class="muted">{{ row.tags.approval }}</span>{% endif %}</td>
<td class="num">{{ row|score }}</td><td class="num">{{ row.tags.get("round", "") }}</td>
<td>{{ row.created|when }}</td>
<td class="text">{{ why }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p class="muted">
{{- "They cannot be read." if page.problem or page.fault else "There is none yet." }}</p>
{% endif %}
</section>

{% if held.targets %}
<section id="rollback" class="card" aria-labelledby="rollback-title">
<h2 id="rollback-title">Roll back</h2>
<p>Version {{ held.production.version }} leaves Production, and a version that was there before
 comes back at once. Rolling back again returns.</p>
<form method="post" action="/page/rollback" class="fields">
{{ hidden(form, once()) }}
<div class="field">
<label for="rollback-version">Version to bring back</label>
<select id="rollback-version" name="version">
{% for one in held.targets %}
<option value="{{ one.version }}">Version {{ one.version }}
 {%- if one.score %}, {{ one.score }}{% endif %}
 {%- if loop.first %} (the one before){% endif %}</option>
{% endfor %}
</select>
</div>
<div class="pair">
{{ your_name("rollback-by", name) }}
{{ text_input("rollback-note", "note", "Why", required=False) }}
</div>
<label class="choice"><input type="checkbox" name="confirmed" value="yes" required>
<span>Take version {{ held.production.version }} out of Production now</span></label>
<button class="danger">Roll back</button>
</form>
</section>
{% endif %}
"""

LEDGER = """\
{% from "parts" import hidden, text_input, your_name, fault %}
{% set held = page.stages %}
<section id="ledger" aria-labelledby="ledger-title">
<h2 id="ledger-title">Ledger</h2>
{% if page.problem %}
<p class="muted">It cannot be read now.</p>
{% elif page.fault %}
<p class="verified bad"><strong>It does not verify.</strong> {{ page.fault }}</p>
{% else %}
<p class="verified good"><strong>It verifies.</strong> {{ page.total_entries }}
 {{ "entry was" if page.total_entries == 1 else "entries were" }} checked now, from the first on;
 each bears the hash of the one before.</p>
{% endif %}
{% if page.entries %}
<div class="scroll card" tabindex="0" role="region" aria-labelledby="ledger-table">
<table>
<caption id="ledger-table">
{{- "The entries before the fault" if page.fault else "Who moved what" }}, newest first
 {%- if page.total_entries > page.entries|length %}; the newest {{ page.entries|length }} of
 {{ page.total_entries }}{% endif %}</caption>
<thead><tr><th scope="col">Entry</th><th scope="col">Time</th><th scope="col">Move</th>
<th scope="col">Version</th><th scope="col">Instead of</th><th scope="col">By</th>
<th scope="col">Why</th></tr></thead>
<tbody>
{% for entry in page.entries %}
<tr><th scope="row">{{ entry.number }}</th><td>{{ entry.time|when }}</td>
<td>{{ moves.get(entry.op, entry.op) }}</td><td class="num">{{ entry.version }}</td>
<td class="num">{{ entry.displaced }}</td><td>{{ entry.actor }}</td>
<td class="text">{{ entry.reason }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% elif not page.problem and not page.fault %}
<p class="muted">Nothing has been moved yet.</p>
{% endif %}
</section>

"""

REGISTRY = {"registry": NOW, "ledger": LEDGER}
"""Templates by name."""
