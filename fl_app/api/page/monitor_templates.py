# SPDX-License-Identifier: Apache-2.0
"""Templates of the monitor: requests for retraining and data drift."""

from __future__ import annotations

RETRAINING = """\
{% from "parts" import alert, chip, hidden, part, table, text_input, your_name %}
<section id="retraining" aria-labelledby="retraining-title">
<h2 id="retraining-title">Retraining</h2>
{{ alert(database_problem) }}
{% if state %}
<dl class="facts">
{% for title, value in (
  ("Last score", state.current),
  ("Best score", state.best),
  ("Threshold of a fall", state.threshold),
) %}
<div><dt>{{ title }}</dt><dd>{{ "-" if value is none else value|number }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% if requests %}
{% set running, pending = requests.running, requests.pending %}
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
{%- if monitoring %}The monitor runs here: it checks scores, data and schedule.
{%- else %}The monitor does not run in this process. A request is served by a run that waits
 elsewhere, else by the next <code>flwr run</code>.{% endif %}</p>
</div>
<div class="card">
<h3>Request retraining</h3>
<form method="post" action="/page/trigger" class="fields">
{{ hidden(form, once()) }}
{{ text_input("trigger-reason", "reason", "Why train again",
 hint="It names the session that follows.") }}
{{ your_name("trigger-by", name) }}
<button>Request retraining</button>
</form>
</div>
</div>
{% if requests.newest %}
{% call table("requests-table",
 "Requests, newest first" ~ part(requests.newest|length, requests.total, "fl-app history"),
 ("Requested", "Trigger", "Outcome", "Reason", "Ended")) %}
{% for one in requests.newest %}
<tr><td>{{ one.created|when }}</td><td>{{ one.kind }}</td>
<td>{{ chip(one.outcome, one.outcome) }}</td>
<td class="text">{{ one.reason }}
 {%- if one.why %} <span class="muted">({{ one.why }})</span>{% endif %}</td>
<td>{% if one.ended %}{{ one.ended|when }}{% endif %}</td></tr>
{% endfor %}
{% endcall %}
{% else %}
<p class="muted">No retraining was requested yet.</p>
{% endif %}
{% endif %}
</section>

<section id="drift" aria-labelledby="drift-title">
<h2 id="drift-title">Data drift</h2>
{% if drift %}
{% if drift.is_alarm %}<p class="verified bad"><strong>Alarm.</strong> {{ drift.reason }}.</p>
{% else %}<p class="verified good"><strong>No alarm.</strong> The mean evidence is
 {{ drift|mean_evidence|evidence }}; the alarm threshold is {{ drift.height|evidence }}.</p>
{% endif %}
{% call table("drift-table",
 "The last check: " ~ drift.rows ~ " new rows on " ~ drift.nodes ~ " nodes; strongest first"
 ~ part(strongest|length, drift.features|length),
 ("Feature", "Evidence, up to the alarm threshold", "Effect", "Direction",
 "Nodes with significant drift")) %}
{% for one in strongest %}
<tr><th scope="row">{{ one.feature|string }}
 {%- if one in drift.drifted %} {{ chip("drifted", "failed") }}{% endif %}</th>
<td><meter value="{{ one.evidence|share(drift.height) }}" aria-hidden="true"></meter>
 {{ one.evidence|evidence }}</td>
<td class="num">{{ "%.2f"|format(one.effect) }}</td><td>{{ one.direction }}</td>
<td class="num">{{ one.nodes_moved }}</td></tr>
{% endfor %}
{% endcall %}
<p class="hint">The bars are logarithmic, up to {{ drift.height|evidence }}. The effect is the
 greatest difference of two distribution functions, 0 to 1.</p>
{% else %}
<p class="muted">No node has reported new data yet.</p>
{% endif %}
</section>
"""

MONITOR = {"monitor": RETRAINING}
"""Templates by name."""
