# SPDX-License-Identifier: Apache-2.0
"""Templates of the page's sections: stages, approval, curves, versions, retraining, drift, ledger.

They read the records that `overview.py` gives.
"""

from __future__ import annotations

SECTIONS = {
    "registry": """\
{% from "parts" import alert, chip, form, section, table, text_input, verdict, your_name %}
{% set production, staging = registry.staged("Production"), registry.staged("Staging") %}
{% set waits = staging and staging is pending %}
{% set former, unread = registry.former, registry.problem or registry.fault %}
{% call section("now", "Now") %}
{{ alert(registry.problem) }}
{{ alert(registry.fault) }}
{% for notice in notices %}
{{ alert(notice) }}
{% endfor %}
{% set fall = probation.last_failure if probation else none %}
{% if fall and (not fall.back or fall.back == probation.version) %}
{% call verdict("bad", "Version " ~ fall.version ~ " failed") %}
{{ fall.time|when }}: {{ fall.reason }};
{%- if fall.back %} version {{ fall.back }} came back automatically.
{%- elif fall.back is none %} the version before is about to come back.
{%- else %} there was no version to bring back.{% endif %}
{% endcall %}
{% endif %}
<div class="cards">
{% for key, title, row, empty in (
  ("production", "Production", production, "Nothing is in Production."),
  ("staging", "Staging", staging, "Nothing is in Staging."),
  ("before", "In Production before", (former + [none])[0], "Nothing was in Production before."),
) %}
<article class="card" aria-labelledby="{{ key }}-title">
<h3 id="{{ key }}-title">{{ chip(title, "pending" if key == "staging" and waits else key) }}</h3>
{% if row %}
{% set entry, gates = registry.came(row, title), row.tags.get("reason") %}
<p class="big">Version {{ row.version }} <span class="score">{{ row|score_text }}</span></p>
<dl>
{% if entry %}
<div><dt>{{ "Came" if key == "before" else "Since" }}</dt><dd>{{ entry.time|when }}
 {%- if entry.actor %}, by {{ entry.actor }}{% endif %}</dd></div>
{% if entry.reason %}<div><dt>Why</dt><dd>{{ entry.reason }}</dd></div>{% endif %}
{% endif %}
{% if gates and key != "before" and (not entry or gates != entry.reason) %}
<div><dt>Gates</dt><dd>{{ gates }}</dd></div>
{% endif %}
{% if key == "production" and probation and probation.version == row.version %}
{% set words = {"watching": "watched", "exempt": "not watched"} %}
<div><dt>Probation</dt><dd>{{ words.get(probation.phase, probation.phase) }}
 {%- if probation.phase == "watching" %} until {{ probation.until|when }} at least;
 {{ probation.reports }} of {{ probation.reports_needed }} reports were all right
 {%- if probation.critical_in_a_row %}, and the last {{ probation.critical_in_a_row }} critical
 {%- endif %}{% endif %}</dd></div>
{% endif %}
</dl>
{% if key == "before" %}<p><a href="#rollback">Roll back</a></p>{% endif %}
{% else %}
<p class="muted">{{ "Unknown." if unread else empty }}</p>
{% endif %}
</article>
{% endfor %}
</div>
{% endcall %}

{% if waits %}
{% call section("approval", "Version " ~ staging.version ~ " waits for approval",
 "card attention") %}
<p>{{ staging.tags.get("reason", "") }}</p>
<p class="muted">{{ staging|score_text }}
 {%- if production and production|score_text %}; in Production is version
 {{ production.version }} with {{ production|score_text }}{% endif %}. Registered
 {{ staging.created|when }}
 {%- if staging|nodes_text %}, from {{ staging|nodes_text }}{% endif %}.</p>
{% call form("decide", "Record the decision", version=staging.version) %}
<fieldset>
<legend>Decision</legend>
<label class="choice"><input type="radio" name="decision" value="approve" required>
<span><strong>Approve</strong>: it goes to Production
 {%- if production %}, and version {{ production.version }} is archived{% endif %}.</span></label>
<label class="choice"><input type="radio" name="decision" value="reject" required>
<span><strong>Reject</strong>: it is archived
 {%- if production %}, and version {{ production.version }} stays{% endif %}.</span></label>
</fieldset>
<div class="pair">
{{ your_name("approval-by") }}
{{ text_input("approval-note", "note", "Note", required=False) }}
</div>
{% endcall %}
{% endcall %}
{% endif %}

{% call section("curves", "Scores by round") %}
{% if chart %}
{% if chart.metrics|length > 1 %}
<form method="get" action="/#curves" class="inline">
<label for="metric">Metric</label>
<select id="metric" name="metric">
{% for name in chart.metrics %}
<option{% if name == chart.metric %} selected{% endif %} value="{{ name }}">{{ name }}</option>
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
{% call(point) table("chart", chart.metric ~ " by round, newest first", chart.points[::-1],
 ("Version", "Session of", "Round", chart.metric, "Production")) %}
<th scope="row">{{ point.version }}</th><td>{{ point.session }}</td><td>{{ point.round }}</td>
<td class="num">{{ point.value|number_text }}</td>
<td>{% for move in chart.promotions if move.version == point.version %}
{{- "rolled back to" if move.back else "promoted" }} {{ move.time|when }}{{ ", " if not loop.last }}
{%- endfor %}</td>
{% endcall %}
</details>
</figure>
{% else %}
<p class="muted">{% if unread %}The scores cannot be read.{% else %}There is nothing to draw yet:
 <code>flwr run . --stream</code> makes versions with scores.{% endif %}</p>
{% endif %}
{% endcall %}

{% call section("versions", "Versions") %}
{% call(row) table("versions", "Versions, newest first", registry.rows,
 ("Version", "Stage", "Score", "Round", "Registered", "Weights", "Why"), registry.total,
 most=50,
 command="fl-app versions --limit 0",
 empty="They cannot be read." if unread else "There is no version yet.") %}
<th scope="row">{{ row.version }}</th>
<td>{{ chip(row.stage, "pending" if row is pending else row.stage|lower) }}
 {%- if row is pending or row.tags.get("approval") in ("rejected", "superseded") %}
 <span class="muted">{{ row.tags.approval }}</span>{% endif %}</td>
<td class="num">{{ row|score_text }}</td><td class="num">{{ row.tags.get("round", "") }}</td>
<td>{{ row.created|when }}</td>
<td>{% for format in ("safetensors", "pt") if format != "pt" or can_export %}
<a href="/page/weights?version={{ row.version }}&amp;format={{ format }}"
 aria-label="Download version {{ row.version }} as .{{ format }}">.{{ format }}</a>
{% endfor %}</td>
<td class="text">{{ row|why_text(registry.moves) }}</td>
{% endcall %}
{% endcall %}

{% if former %}
{% call section("rollback", "Roll back", "card") %}
<p>Version {{ production.version }} leaves Production, and a version that was there before
 comes back at once. Rolling back again returns.</p>
{% call form("rollback", "Roll back", "danger") %}
<div class="field">
<label for="rollback-version">Version to bring back</label>
<select id="rollback-version" name="version">
{% for row in former %}
<option value="{{ row.version }}">Version {{ row.version }}
 {%- if row|score_text %}, {{ row|score_text }}{% endif %}
 {%- if loop.first %} (the one before){% endif %}</option>
{% endfor %}
</select>
</div>
<div class="pair">
{{ your_name("rollback-by") }}
{{ text_input("rollback-note", "note", "Why", required=False) }}
</div>
<label class="choice"><input type="checkbox" name="confirmed" value="yes" required>
<span>Take version {{ production.version }} out of Production now</span></label>
{% endcall %}
{% endcall %}
{% endif %}
""",
    "monitor": """\
{% from "parts" import alert, chip, form, section, table, text_input, verdict, your_name %}
{% call section("retraining", "Retraining") %}
{% if not database_works %}
{{ alert("The monitor's database does not answer; try again.") }}
{% else %}
<dl class="facts">
{% for title, value in (("Last score", rule.current), ("Best score", rule.best),
 ("Threshold of a fall", rule.threshold)) %}
<div><dt>{{ title }}</dt><dd>{{ "-" if value is none else value|number_text }}</dd></div>
{% endfor %}
</dl>
<div class="cards">
<div class="card">
<h3>Now</h3>
{% if running %}<p>{{ chip("running", "running") }} {{ running.reason }}
 <span class="muted">({{ running.kind }}, since {{ running.started|when }})</span></p>{% endif %}
{% if pending %}<p>{{ chip("pending", "pending") }} {{ pending.reason }}
 <span class="muted">({{ pending.kind }}, requested {{ pending.created|when }})</span></p>
{% endif %}
{% if not running and not pending %}<p class="muted">No request runs or is pending.</p>{% endif %}
<p class="muted">
{%- if monitor.monitoring %}The monitor runs here: it checks scores, data and schedule.
{%- else %}The monitor does not run in this process. A request is served by a run that waits
 elsewhere, else by the next <code>flwr run</code>.{% endif %}</p>
</div>
<div class="card">
<h3>Request retraining</h3>
{% call form("trigger", "Request retraining") %}
{% call text_input("trigger-reason", "reason", "Why train again") %}
It names the session that follows.
{%- endcall %}
{{ your_name("trigger-by") }}
{% endcall %}
</div>
</div>
{% call(row) table("requests", "Requests, newest first", newest_requests,
 ("Requested", "Trigger", "Outcome", "Reason", "Ended"), total_requests,
 command="fl-app history", empty="No retraining was requested yet.") %}
<td>{{ row.created|when }}</td><td>{{ row.kind }}</td>
<td>{{ chip(row.outcome, row.outcome) }}</td>
<td class="text">{{ row.reason }}
 {%- if row.why %} <span class="muted">({{ row.why }})</span>{% endif %}</td>
<td>{% if row.ended %}{{ row.ended|when }}{% endif %}</td>
{% endcall %}
{% endif %}
{% endcall %}

{% call section("drift", "Data drift") %}
{% if drift %}
{% if drift.is_alarm %}
{% call verdict("bad", "Alarm.") %}{{ drift.reason }}.{% endcall %}
{% else %}
{% call verdict("good", "No alarm.") %}The mean evidence is
 {{ (drift.features|sum("evidence") / drift.features|length)|evidence_text }};
 the alarm threshold is {{ drift.height|evidence_text }}.
{% endcall %}
{% endif %}
{% call(feature) table("drift",
 "The last check: " ~ drift.rows ~ " new rows on " ~ drift.nodes ~ " nodes; strongest first",
 drift.features|sort(attribute="evidence", reverse=True), ("Feature",
 "Evidence, up to the alarm threshold", "Effect", "Direction", "Nodes with significant drift"),
 most=40) %}
<th scope="row">{{ feature.feature|string }}
 {%- if feature in drift.drifted %} {{ chip("drifted", "failed") }}{% endif %}</th>
<td><meter value="{{ feature.evidence|share(drift.height) }}" aria-hidden="true"></meter>
 {{ feature.evidence|evidence_text }}</td>
<td class="num">{{ "%.2f"|format(feature.effect) }}</td><td>{{ feature.direction }}</td>
<td class="num">{{ feature.nodes_moved }}</td>
{% endcall %}
<p class="hint">The bars are logarithmic, up to {{ drift.height|evidence_text }}. The effect is the
 greatest difference of two distribution functions, 0 to 1.</p>
{% else %}
<p class="muted">No node has reported new data yet.</p>
{% endif %}
{% endcall %}
""",
    "ledger": """\
{% from "parts" import section, table, verdict %}
{% set entries, fault = registry.entries, registry.fault %}
{% call section("ledger", "Ledger") %}
{% if registry.problem %}
<p class="muted">It cannot be read now.</p>
{% elif fault %}
{% call verdict("bad", "It does not verify.") %}{{ fault }}{% endcall %}
{% else %}
{% call verdict("good", "It verifies.") %}{{ entries|length }}
 {{ "entry was" if entries|length == 1 else "entries were" }} checked, those of full pages once
 since this server began; each has the hash of the one before.{% endcall %}
{% endif %}
{% call(entry) table("ledger",
 ("The entries before the fault" if fault else "Who moved what") ~ ", newest first", entries[::-1],
 ("Entry", "Time", "Move", "Version", "Instead of", "By", "Why"), most=50,
 empty="" if registry.problem or fault else "Nothing has been moved yet.") %}
<th scope="row">{{ entry.number }}</th><td>{{ entry.time|when }}</td>
<td>{{ moves.get(entry.op, entry.op) }}</td><td class="num">{{ entry.version }}</td>
<td class="num">{{ entry.displaced }}</td><td>{{ entry.actor }}</td>
<td class="text">{{ entry.reason }}</td>
{% endcall %}
{% endcall %}
""",
}
"""By name."""
