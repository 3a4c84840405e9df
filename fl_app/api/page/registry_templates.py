# SPDX-License-Identifier: Apache-2.0
"""Templates of what the registry holds: stages, approval, curves, versions, rollback, ledger."""

from __future__ import annotations

NOW = """\
{% from "parts" import alert, chip, hidden, part, table, text_input, your_name %}
<section id="now" aria-labelledby="now-title">
<h2 id="now-title">Now</h2>
{{ alert(problem) }}
{{ alert(fault) }}
{% set fall = probation.last_failure if probation else none %}
{% if fall and (not fall.back or fall.back == probation.version) %}
<p class="verified bad"><strong>Version {{ fall.version }} failed</strong> {{ fall.time|when }}:
 {{ fall.reason }};
 {%- if fall.back %} version {{ fall.back }} came back automatically.
 {%- elif fall.back is none %} the version before is about to come back.
 {%- else %} there was no version to bring back.{% endif %}</p>
{% endif %}
<div class="cards">
{% for key, title, one in (
  ("production", "Production", production),
  ("staging", "Staging", staging),
  ("before", "In Production before", previous),
) %}
<article class="card" aria-labelledby="{{ key }}-title">
<h3 id="{{ key }}-title">{{ chip(title, "pending" if key == "staging" and waiting else key) }}</h3>
{% if one %}
<p class="big">Version {{ one.row.version }} <span class="score">{{ one.row|score }}</span></p>
<dl>
{% if one.entry %}
<div><dt>{{ "Came" if key == "before" else "Since" }}</dt><dd>{{ one.entry.time|when }}
 {%- if one.entry.actor %}, by {{ one.entry.actor }}{% endif %}</dd></div>
{% if one.entry.reason %}<div><dt>Why</dt><dd>{{ one.entry.reason }}</dd></div>{% endif %}
{% endif %}
{% set gates = one.row.tags.get("reason") %}
{% if gates and key != "before" and (not one.entry or gates != one.entry.reason) %}
<div><dt>Gates</dt><dd>{{ gates }}</dd></div>
{% endif %}
{% if key == "production" and probation and probation.version == one.row.version %}
<div><dt>Probation</dt><dd>{{ phases.get(probation.phase, probation.phase) }}
 {%- if probation.phase == "watching" %} until {{ probation.until|when }} at least;
 {{ probation.reports }} of {{ probation.reports_needed }} reports were all right
 {%- if probation.critical_in_a_row %}, and the last {{ probation.critical_in_a_row }} critical
 {%- endif %}{% endif %}</dd></div>
{% endif %}
</dl>
{% if key == "before" %}<p><a href="#rollback">Roll back</a></p>{% endif %}
{% else %}
<p class="muted">{{ "Unknown." if problem or fault else "Nothing is in " ~ title ~ "."
 if key != "before" else "Nothing was in Production before." }}</p>
{% endif %}
</article>
{% endfor %}
</div>
</section>

{% for one in waiting %}
<section id="approval" class="card attention" aria-labelledby="approval-{{ one.version }}">
<h2 id="approval-{{ one.version }}">Version {{ one.version }} waits for approval</h2>
<p>{{ one.tags.get("reason", "") }}</p>
<p class="muted">{{ one|score }}
 {%- if production and production.row|score %}; in Production is version
 {{ production.row.version }} with {{ production.row|score }}{% endif %}. Registered
 {{ one.created|when }}{% if one|nodes %}, from {{ one|nodes }}{% endif %}.</p>
<form method="post" action="/page/decide" class="fields">
{{ hidden(form, once(), one.version) }}
<fieldset>
<legend>Decision</legend>
<label class="choice"><input type="radio" name="decision" value="approve" required>
<span><strong>Approve</strong>: it goes to Production
 {%- if production %}, and version {{ production.row.version }} is archived
 {%- endif %}.</span></label>
<label class="choice"><input type="radio" name="decision" value="reject" required>
<span><strong>Reject</strong>: it is archived
 {%- if production %}, and version {{ production.row.version }} stays{% endif %}.</span></label>
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
{% if chart %}
{% if metrics|length > 1 %}
<form method="get" action="/#curves" class="inline">
<label for="metric">Metric</label>
<select id="metric" name="metric">
{% for one in metrics %}
<option{% if one == chart.metric %} selected{% endif %} value="{{ one }}">{{ one }}</option>
{% endfor %}
</select>
<button class="quiet">Show</button>
</form>
{% endif %}
{% set picture = "/page/chart.svg?metric=" ~ chart.metric|urlencode %}
<figure class="card">
<div class="scroll" tabindex="0" role="region" aria-label="Chart of the scores">
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ picture }}&theme=dark">
<img class="chart" src="{{ picture }}" alt="{{ chart.metric }} by round. {{ chart.summary }}">
</picture>
</div>
<figcaption>
<p>{{ chart.summary }}
 {%- if chart.left_out %} {{ chart.left_out }} older ones are not drawn.{% endif %}</p>
</figcaption>
<details>
<summary>The same as a table</summary>
{% call table("chart-table", chart.metric ~ " by round, newest first",
 ("Version", "Session of", "Round", chart.metric, "Production")) %}
{% for point in chart.points|reverse %}
<tr><th scope="row">{{ point.version }}</th><td>{{ point.session }}</td><td>{{ point.round }}</td>
<td class="num">{{ point.value|number }}</td>
<td>{% for one in chart.promotions if one.version == point.version %}
{{- "rolled back to" if one.back else "promoted" }} {{ one.time|when }}{{ ", " if not loop.last }}
{%- endfor %}</td></tr>
{% endfor %}
{% endcall %}
</details>
</figure>
{% else %}
<p class="muted">There is nothing to draw yet: <code>flwr run . --stream</code> makes versions with
 scores.</p>
{% endif %}
</section>

<section id="versions" aria-labelledby="versions-title">
<h2 id="versions-title">Versions</h2>
{% if versions %}
{% call table("versions-table",
 "Versions, newest first" ~ part(versions|length, total_versions, "fl-app versions"),
 ("Version", "Stage", "Score", "Round", "Registered", "Why")) %}
{% for row, why in versions %}
<tr><th scope="row">{{ row.version }}</th>
<td>{{ chip(row.stage, "pending" if row|pending else row.stage|lower) }}
 {%- if row|pending %} <span class="muted">pending</span>
{%- elif row.tags.get("approval") in ("rejected", "superseded") %}
 <span class="muted">{{ row.tags.approval }}</span>{% endif %}</td>
<td class="num">{{ row|score }}</td><td class="num">{{ row.tags.get("round", "") }}</td>
<td>{{ row.created|when }}</td>
<td class="text">{{ why }}</td></tr>
{% endfor %}
{% endcall %}
{% else %}
<p class="muted">
{{- "They cannot be read." if problem or fault else "There is no version yet." }}</p>
{% endif %}
</section>

{% if targets %}
<section id="rollback" class="card" aria-labelledby="rollback-title">
<h2 id="rollback-title">Roll back</h2>
<p>Version {{ production.row.version }} leaves Production, and a version that was there before
 comes back at once. Rolling back again returns.</p>
<form method="post" action="/page/rollback" class="fields">
{{ hidden(form, once()) }}
<div class="field">
<label for="rollback-version">Version to bring back</label>
<select id="rollback-version" name="version">
{% for one in targets %}
<option value="{{ one.version }}">Version {{ one.version }}
 {%- if one|score %}, {{ one|score }}{% endif %}
 {%- if loop.first %} (the one before){% endif %}</option>
{% endfor %}
</select>
</div>
<div class="pair">
{{ your_name("rollback-by", name) }}
{{ text_input("rollback-note", "note", "Why", required=False) }}
</div>
<label class="choice"><input type="checkbox" name="confirmed" value="yes" required>
<span>Take version {{ production.row.version }} out of Production now</span></label>
<button class="danger">Roll back</button>
</form>
</section>
{% endif %}
"""

LEDGER = """\
{% from "parts" import part, table %}
<section id="ledger" aria-labelledby="ledger-title">
<h2 id="ledger-title">Ledger</h2>
{% if problem %}
<p class="muted">It cannot be read now.</p>
{% elif fault %}
<p class="verified bad"><strong>It does not verify.</strong> {{ fault }}</p>
{% else %}
<p class="verified good"><strong>It verifies.</strong> {{ total_entries }}
 {{ "entry was" if total_entries == 1 else "entries were" }} checked now, from the first on;
 each has the hash of the one before.</p>
{% endif %}
{% if entries %}
{% call table("ledger-table",
 ("The entries before the fault" if fault else "Who moved what") ~ ", newest first"
 ~ part(entries|length, total_entries),
 ("Entry", "Time", "Move", "Version", "Instead of", "By", "Why")) %}
{% for entry in entries %}
<tr><th scope="row">{{ entry.number }}</th><td>{{ entry.time|when }}</td>
<td>{{ moves.get(entry.op, entry.op) }}</td><td class="num">{{ entry.version }}</td>
<td class="num">{{ entry.displaced }}</td><td>{{ entry.actor }}</td>
<td class="text">{{ entry.reason }}</td></tr>
{% endfor %}
{% endcall %}
{% elif not problem and not fault %}
<p class="muted">Nothing has been moved yet.</p>
{% endif %}
</section>
"""

REGISTRY = {"registry": NOW, "ledger": LEDGER}
"""Templates by name."""
