# SPDX-License-Identifier: Apache-2.0
"""Templates of the main page's sections: session, stages, approval, curves, versions, and so on.

They read the records that `overview.py` gives.
"""

from __future__ import annotations

SECTIONS = {
    "session": """\
{% from "parts" import section, table, td %}
<div id="live" data-mark="{{ mark }}">
{% if live %}
{% call section("session", "Session under way", "card") %}
{% if live.is_silent(now) %}
<p class="verified bad"><strong>No sign of life</strong> since {{ live.written|when }}.
 The process of this session hangs or is gone: <code>fl-app recover</code> shows what is on disk,
 and the next <code>flwr run</code> resumes it.</p>
{% endif %}
<p class="big">{{ phase_words[live.phase] }}
 {%- if live.round %} <span class="score">in round {{ live.round }} of {{ live.num_rounds }}</span>
 {%- endif %}</p>
{% if live.round %}
<progress max="{{ live.num_rounds }}"
 value="{{ live.round - (0 if live.phase == "finishing" else 1) }}"
 aria-label="Rounds that are over"></progress>
{% endif %}
<dl>
<div><dt>Time left</dt><dd>
{%- if live.phase == "finishing" %}the last steps: scoring, registering, staging
{%- elif live.seconds_left(now) is none %}known after the first round
{%- else %}about {{ live.seconds_left(now)|duration }}{% endif %}</dd></div>
<div><dt>Began</dt><dd>{{ live.started|when }}, from
 {{ "version " ~ live.parent_version if live.parent_version else "new weights" }}</dd></div>
{% if live.trigger %}<div><dt>Why</dt><dd>{{ live.trigger }}</dd></div>{% endif %}
{% if live.phase in ("train", "evaluate") %}
<div><dt>Nodes</dt><dd>{{ live.answered }} of {{ live.requested }} answered
 {%- if live.nodes %}: <span class="num">{{ live.nodes|join(", ") }}</span>{% endif %}</dd></div>
{% elif live.phase == "waiting" %}
<div><dt>Nodes</dt><dd>waits until enough are connected</dd></div>
{% endif %}
</dl>
{% for replies, title in ((live.rejected, "Rejected in this round"),
 (live.rejected_before, "Rejected in the round before")) %}
{% if replies %}
{% call(bad) table("rejected-" ~ loop.index, title, replies, ("Node", "In", "In a row", "Why")) %}
{{ td("Node", bad.node_id, "num") }}{{ td("In", bad.phase, "short") }}
{{ td("In a row", bad.in_a_row, "short num") }}{{ td("Why", bad.reason, "text") }}
{% endcall %}
{% endif %}
{% endfor %}
{% endcall %}
{% endif %}
</div>
""",
    "registry": """\
{% from "parts" import alert, chip, form, section, table, td, text_input, verdict, your_name %}
{% from "parts" import version_row, version_heads %}
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
  ("production", "Production", production,
   "Nothing is in Production. Approve the version that waits, or promote one on its page."
   if registry.rows else
   "Nothing is in Production. `flwr run . --stream` trains versions; approve one here."),
  ("staging", "Staging", staging,
   "Nothing is in Staging. The best version of a session comes here by itself."),
  ("before", "In Production before", (former + [none])[0],
   "Nothing was in Production before. After the next promotion you can roll back to it here."),
) %}
<article class="card" aria-labelledby="{{ key }}-title">
<h3 id="{{ key }}-title">{{ chip(title, "pending" if key == "staging" and waits else key) }}</h3>
{% if row %}
{% set entry, gates = registry.came(row, title), row.tags.get("reason") %}
<p class="big"><a href="/page/version?version={{ row.version }}">Version {{ row.version }}</a>
 <span class="score">{{ row|score_text }}</span></p>
<dl>
{% if entry %}
<div><dt>{{ "Came" if key == "before" else "Since" }}</dt><dd>{{ entry.time|when }}
 {%- if entry.actor %}, by {{ entry.actor }}{% endif %}</dd></div>
{% if entry.reason %}<div><dt>Why</dt><dd>{{ entry.reason }}</dd></div>{% endif %}
{% endif %}
{% if gates and key != "before" and (not entry or gates != entry.reason) %}
<div><dt>{{ "Gates" if key == "staging" else "Gates then" }}</dt><dd>{{ gates }}</dd></div>
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
{% if key == "before" and may_decide() %}<p><a href="#rollback">Roll back</a></p>{% endif %}
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
<p><a href="/page/version?version={{ staging.version }}">Its pictures and its numbers by class</a>
 {%- if production %}, and
 <a href="/page/compare?first={{ production.version }}&amp;second={{ staging.version }}">beside
 version {{ production.version }}</a>{% endif %}.</p>
{% if may_decide() %}
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
{% else %}
<p class="muted">You may read; somebody who may decide approves or rejects it.</p>
{% endif %}
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
{% set picture = "/page/chart.svg?metric=" ~ chart.metric|urlencode ~ "&view=" ~ registry.key %}
<figure class="card">
<div class="scroll" tabindex="0" role="region" aria-label="Chart of the scores">
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ picture }}&theme=dark">
<img class="chart" src="{{ picture }}" alt="{{ chart.metric }} by round. {{ chart.summary }}"
 width="1008" height="442">
</picture>
</div>
<figcaption>
<p>{{ chart.summary }}
 {%- if chart.left_out %} {{ chart.left_out }} older ones are not drawn.{% endif %}</p>
</figcaption>
<details>
<summary>The same as a table</summary>
{% call(point) table("chart", chart.metric ~ " by round, newest first", chart.points[::-1],
 ("Version", "Session of", "Round", chart.metric, "Production"), most=200) %}
<th scope="row">{{ point.version }}</th>{{ td("Session of", point.session, "short") }}
{{ td("Round", point.round, "num") }}{{ td(chart.metric, point.value|number_text, "num") }}
{% call td("Production") %}{% for move in chart.promotions if move.version == point.version %}
{{- "rolled back to" if move.back else "promoted" }} {{ move.time|when }}{{ ", " if not loop.last }}
{%- endfor %}{% endcall %}
{% endcall %}
</details>
</figure>
{% else %}
<p class="muted">{% if unread %}The scores cannot be read.{% else %}There is nothing to draw yet:
 <code>flwr run . --stream</code> makes versions with scores.{% endif %}</p>
{% endif %}
{% endcall %}

{% call section("versions", "Versions") %}
{% if unread %}
<p class="muted">They cannot be read.</p>
{% elif registry.rows %}
<p><a href="/page/versions">All versions, by stage, day or score</a></p>
{% if registry.rows|length > 1 %}
<form method="get" action="/page/compare" class="inline">
<label for="compare-first">Compare version</label>
<input id="compare-first" name="first" inputmode="numeric" required size="6" maxlength="9"
 value="{{ (production or registry.rows[1]).version }}">
<label for="compare-second">with</label>
<input id="compare-second" name="second" inputmode="numeric" required size="6" maxlength="9"
 value="{{ registry.rows[0].version }}">
<button class="quiet">Compare</button>
</form>
{% endif %}
{% call(row) table("versions", "Versions, newest first", registry.rows, version_heads,
 registry.total, most=50, command="fl-app versions --limit 0") %}
{{ version_row(row, registry.moves, can_export) }}
{% endcall %}
{% else %}
<p class="muted">There is no version yet. <code>flwr run . --stream</code> trains a model and
 registers one version a round.</p>
{% endif %}
{% endcall %}

{% if former and may_decide() %}
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
{% from "parts" import alert, chip, form, section, table, td, text_input, verdict, your_name %}
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
{% if may_decide() %}
<div class="card">
<h3>Request retraining</h3>
{% call form("trigger", "Request retraining") %}
{% call text_input("trigger-reason", "reason", "Why train again") %}
It names the session that follows.
{%- endcall %}
{{ your_name("trigger-by") }}
{% endcall %}
</div>
{% endif %}
</div>
{% call(row) table("requests", "Requests, newest first", newest_requests,
 ("Requested", "Trigger", "Outcome", "Reason", "Ended"), total_requests,
 command="fl-app history", empty="No retraining was requested yet. Request it above, "
 "or let a schedule, a fall of the score or drift of the data do it.") %}
{{ td("Requested", row.created|when, "short") }}{{ td("Trigger", row.kind, "short") }}
{{ td("Outcome", chip(row.outcome, row.outcome), "short") }}
{% call td("Reason", kind="text") %}{{ row.reason }}
 {%- if row.why %} <span class="muted">({{ row.why }})</span>{% endif %}{% endcall %}
{{ td("Ended", row.ended|when if row.ended else "", "short") }}
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
{% call td("Evidence", kind="short") %}<meter value="{{ feature.evidence|share(drift.height) }}"
 aria-hidden="true"></meter> {{ feature.evidence|evidence_text }}{% endcall %}
{{ td("Effect", "%.2f"|format(feature.effect), "num") }}{{ td("Direction", feature.direction) }}
{{ td("Nodes", feature.nodes_moved, "num") }}
{% endcall %}
<p class="hint">The bars are logarithmic, up to {{ drift.height|evidence_text }}. The effect is the
 greatest difference of two distribution functions, 0 to 1.
 {% if registry and registry.rows %}The curves are among the pictures of
 <a href="/page/version?version={{ registry.rows[0].version }}">version
 {{ registry.rows[0].version }}</a>, once its session is over.{% endif %}</p>
{% elif database_works %}
<p class="muted">No node has reported new data yet. Nodes report with each round, if the run has
 <code>data-summaries=true</code> and there are new rows since the last session.</p>
{% else %}
<p class="muted">Unknown.</p>
{% endif %}
{% endcall %}
""",
    "ledger": """\
{% from "parts" import section, table, td, verdict %}
{% set entries, fault = registry.entries, registry.fault %}
{% call section("ledger", "Ledger") %}
{% if registry.problem %}
<p class="muted">It cannot be read now.</p>
{% elif fault %}
{% call verdict("bad", "It does not verify.") %}{{ fault }}{% endcall %}
{% elif entries %}
{% call verdict("good", "It verifies.") %}{{ entries|length }}
 {{ "entry was" if entries|length == 1 else "entries were" }} checked, those of full pages once
 since this server began; each has the hash of the one before.{% endcall %}
{% endif %}
{% call(entry) table("ledger",
 ("The entries before the fault" if fault else "Who moved what") ~ ", newest first", entries[::-1],
 ("Entry", "Time", "Move", "Version", "Instead of", "By", "Why"), most=50,
 empty="" if registry.problem or fault else
 "Nothing has been moved yet. Each move is written here, with who made it and why.") %}
<th scope="row">{{ entry.number }}</th>{{ td("Time", entry.time|when, "short") }}
{{ td("Move", moves.get(entry.op, entry.op)) }}{{ td("Version", entry.version, "num") }}
{{ td("Instead of", entry.displaced, "num") }}{{ td("By", entry.actor) }}
{{ td("Why", entry.reason, "text") }}
{% endcall %}
{% endcall %}
""",
}
"""By name."""
