# SPDX-License-Identifier: Apache-2.0
"""Templates of what the monitor knows: requests for retraining and the drift of the data."""

from __future__ import annotations

RETRAINING = """\
{% from "parts" import hidden, text_input, your_name, fault %}
<section id="retraining" aria-labelledby="retraining-title">
<h2 id="retraining-title">Retraining</h2>
{{ fault(page.memory_problem) }}
{% if page.standing %}
<dl class="facts">
{% for title, value in (
  ("Last score", page.standing.current),
  ("Best score", page.standing.best),
  ("A fall that matters", page.standing.threshold),
) %}
<div><dt>{{ title }}</dt><dd>{{ "-" if value is none else value|number }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% if page.requests %}
{% set running, pending = page.requests.running, page.requests.pending %}
<div class="cards">
<div class="card">
<h3>In hand</h3>
{% if running %}<p><span class="chip running">running</span> {{ running.reason }}
 <span class="muted">({{ running.kind }}, since {{ running.started|when }})</span></p>{% endif %}
{% if pending %}<p><span class="chip pending">waits</span> {{ pending.reason }}
 <span class="muted">({{ pending.kind }}, asked {{ pending.created|when }})</span></p>{% endif %}
{% if not running and not pending %}<p class="muted">No request runs or waits.</p>{% endif %}
<p class="muted">
{%- if page.watching %}The monitor runs here: it looks at scores, data and calendar.
{%- else %}The monitor does not run in this process. A request is served by a run that waits
 elsewhere, else by the next <code>flwr run</code>.{% endif %}</p>
</div>
<div class="card">
<h3>Ask for it</h3>
<form method="post" action="/page/trigger" class="fields">
{{ hidden(form, once()) }}
{{ text_input("trigger-reason", "reason", "Why train again",
 hint="It names the session that follows.") }}
{{ your_name("trigger-by", name) }}
<button>Ask for retraining</button>
</form>
</div>
</div>
{% if page.requests.newest %}
<div class="scroll card" tabindex="0" role="region" aria-labelledby="requests-table">
<table>
<caption id="requests-table">Requests, newest first
 {%- if page.requests.total > page.requests.newest|length %}; the last
 {{ page.requests.newest|length }} of {{ page.requests.total }}
 (<code>fl-app history</code> lists all){% endif %}</caption>
<thead><tr><th scope="col">Asked</th><th scope="col">Came from</th><th scope="col">Outcome</th>
<th scope="col">Reason</th><th scope="col">Ended</th></tr></thead>
<tbody>
{% for one in page.requests.newest %}
<tr><td>{{ one.created|when }}</td><td>{{ one.kind }}</td>
<td><span class="chip {{ one.outcome }}">{{ one.outcome }}</span></td>
<td class="text">{{ one.reason }}
 {%- if one.why %} <span class="muted">({{ one.why }})</span>{% endif %}</td>
<td>{% if one.ended %}{{ one.ended|when }}{% endif %}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p class="muted">Nobody has asked for retraining yet.</p>
{% endif %}
{% endif %}
</section>

<section id="drift" aria-labelledby="drift-title">
<h2 id="drift-title">Data drift</h2>
{% set drift = page.drift %}
{% if drift %}
{% if drift.reason %}<p class="verified bad"><strong>Alarm.</strong> {{ drift.reason }}.</p>
{% else %}<p class="verified good"><strong>No alarm.</strong> The mean evidence is
 {{ drift.mean|evidence }}; it rings at {{ drift.height|evidence }}.</p>{% endif %}
<div class="scroll card" tabindex="0" role="region" aria-labelledby="drift-table">
<table>
<caption id="drift-table">The last check: {{ drift.rows }} new rows on {{ drift.nodes }} nodes
 {%- if drift.total > drift.features|length %}; the {{ drift.features|length }} strongest of
 {{ drift.total }} features{% endif %}</caption>
<thead><tr><th scope="col">Feature</th><th scope="col">Evidence, on the way to the alarm</th>
<th scope="col">Effect</th><th scope="col">Moved</th>
<th scope="col">Nodes that show it alone</th></tr></thead>
<tbody>
{% for one in drift.features %}
<tr><th scope="row">{{ one.name }}
 {%- if one.drifted %} <span class="chip failed">drifted</span>{% endif %}</th>
<td><span class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
<rect class="track" width="100" height="8"/>
<rect class="{{ 'fill full' if one.share >= 1 else 'fill' }}" height="8"
 width="{{ '%.1f'|format(100 * one.share) }}"/></svg>
{{ one.evidence|evidence }}</span></td>
<td class="num">{{ "%.2f"|format(one.effect) }}</td><td>{{ one.direction }}</td>
<td class="num">{{ one.nodes_moved }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="hint">The bars are logarithmic, up to {{ drift.height|evidence }}. The effect is the
 greatest difference of two distribution functions, 0 to 1.</p>
{% else %}
<p class="muted">No node has told of new data yet.</p>
{% endif %}
</section>
"""

MONITOR = {"monitor": RETRAINING}
"""Templates by name."""
