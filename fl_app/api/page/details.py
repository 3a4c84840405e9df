# SPDX-License-Identifier: Apache-2.0
"""Templates of the pages beside the main one: a version, two versions, all versions, the API.

They read the values that `versions.py` and `api_docs.py` give.
"""

from __future__ import annotations

DETAILS = {
    "version": """\
{% extends "inner" %}
{% from "parts" import chip, form, section, table, td, text_input, your_name %}
{% block title %}Version {{ row.version }} - {{ model }}{% endblock %}
{% block heading %}Version {{ row.version }}{% endblock %}
{% block content %}
{% set tags = row.tags %}
{% call section("facts", "What it is", "card") %}
<p class="big">{{ chip(row.stage, "pending" if row is pending else row.stage|lower) }}
 <span class="score">{{ row|score_text or "no score" }}</span></p>
<dl class="wide">
{% set why = row|why_text(moves_of) %}
{% if why %}<div><dt>Why</dt><dd>{{ why }}</dd></div>{% endif %}
<div><dt>Registered</dt><dd>{{ row.created|when }}</dd></div>
{% if tags.get("round") %}<div><dt>Made in</dt><dd>round {{ tags.round }}
 {%- if tags.get("session") %} of session {{ tags.session }}{% endif %}
 {%- if tags.get("flower_run_id") %}, Flower run {{ tags.flower_run_id }}{% endif %}</dd></div>
{% endif %}
<div><dt>Trained from</dt><dd>
{%- if tags.get("parent_version") %}
<a href="/page/version?version={{ tags.parent_version|urlencode }}">version
 {{ tags.parent_version }}</a>{% else %}new weights, or unknown{% endif %}</dd></div>
{% if tags.get("trigger") %}<div><dt>Trigger</dt><dd>{{ tags.trigger }}</dd></div>{% endif %}
{% if row.description %}<div><dt>Description</dt><dd>{{ row.description }}</dd></div>{% endif %}
<div><dt>Weights</dt><dd>{{ row.size|bytes_text }}
{% for format in ("safetensors", "pt") if format != "pt" or can_export %}
 <a href="/page/weights?version={{ row.version }}&amp;format={{ format }}"
 aria-label="Download version {{ row.version }} as .{{ format }}">.{{ format }}</a>
{% endfor %}
{% if row.sha256 %}<br><code>sha256 {{ row.sha256 }}</code>{% endif %}</dd></div>
<div><dt>MLflow</dt><dd>
{%- if links %}
{% for what, address in links.items() %}
<a href="{{ address }}" rel="noreferrer">{{ "its run" if what == "run" else "the version" }}</a>
{% endfor %}
{% else %}<code>fl-app ui</code> opens its pages
{%- if row.run_id %}; run <code>{{ row.run_id }}</code>{% endif %}{% endif %}</dd></div>
<div><dt>Model card</dt><dd><a href="/page/card?version={{ row.version }}">Markdown</a></dd></div>
</dl>
{% endcall %}

{% if may_decide() and moves_now %}
{% call section("move", "Move it", "card") %}
{% call form("move", "Move version " ~ row.version, version=row.version) %}
<fieldset>
<legend>Move</legend>
{% for move in moves_now %}
<label class="choice"><input type="radio" name="move" value="{{ move }}" required>
<span><strong>{{ move_words[move][0] }}</strong>: {{ move_words[move][1] }}.</span></label>
{% endfor %}
</fieldset>
<div class="pair">
{{ your_name("move-by") }}
{{ text_input("move-note", "note", "Why", required=False) }}
</div>
{% endcall %}
{% endcall %}
{% elif row.stage == "Production" %}
<p class="muted">It is in Production. It leaves when another version is promoted, or by
 <a href="/#rollback">a rollback</a>.</p>
{% endif %}

{% call section("compare", "Compare it") %}
<form method="get" action="/page/compare" class="inline">
<label for="compare-first">With version</label>
<input id="compare-first" name="first" inputmode="numeric" required size="6" maxlength="9"
 value="{{ production or tags.get("parent_version") or newest }}">
<input type="hidden" name="second" value="{{ row.version }}">
<button class="quiet">Compare</button>
</form>
{% endcall %}

{% if gates %}
{% call section("gates", "Gates") %}
{% call(gate) table("gates", "What each gate said", gates, ("Gate", "Passed", "Why")) %}
<th scope="row">{{ gate.gate }}</th>
{{ td("Passed", chip("yes", "done") if gate.ok else chip("no", "failed"), "short") }}
{{ td("Why", gate.reason, "text") }}
{% endcall %}
{% endcall %}
{% endif %}

{% call section("metrics", "Metrics") %}
{% call(name) table("metrics", "Of all examples", metrics|list, ("Metric", "Value"),
 empty="It was saved without metrics.") %}
<th scope="row">{{ name }}</th>{{ td("Value", metrics[name]|number_text, "num") }}
{% endcall %}
{% call(name) table("classes", row|score_metric ~ " by class", classes|list, ("Class", "Value")) %}
<th scope="row">{{ name }}</th>{{ td("Value", classes[name]|number_text, "num") }}
{% endcall %}
{% endcall %}

{% call section("data", "Data") %}
{% call(node) table("nodes", "Nodes that it was made from", nodes, ("Node", "Examples", "Digest"),
 empty="It is not known from which nodes it was made.") %}
<th scope="row">{{ node.node_id }}</th>
{{ td("Examples", "{:,.0f}".format(node.num_examples), "num") }}
{{ td("Digest", node.get("data_digest") or "not reported", "num") }}
{% endcall %}
{% call(bad) table("rejected", "Nodes whose replies were rejected in its round", rejected,
 ("Node", "In", "In a row", "Why")) %}
<th scope="row">{{ bad.node_id }}</th>{{ td("In", bad.phase, "short") }}
{{ td("In a row", bad.in_a_row, "num") }}{{ td("Why", bad.reason, "text") }}
{% endcall %}
{% endcall %}

{% call section("pictures", "Pictures") %}
{% if pictures %}
<p class="hint">Of the session that made it. They show the session's best version.</p>
<div class="pictures">
{% for name in pictures %}
<figure class="card"><img loading="lazy" alt="{{ name }} of the run of version {{ row.version }}"
 src="/page/picture?version={{ row.version }}&amp;name={{ name|urlencode }}">
<figcaption>{{ name }}</figcaption></figure>
{% endfor %}
</div>
{% elif pictures_problem %}
<p class="message refused" role="alert">{{ pictures_problem }}</p>
{% else %}
<p class="muted">There are none: a session draws them at its end, and this version's run has no
 pictures yet.</p>
{% endif %}
{% endcall %}

{% call section("moves", "Its moves") %}
{% call(entry) table("moves", "Newest first", entries[::-1], ("Entry", "Time", "Move", "Instead of",
 "By", "Why"), empty="It was never moved.") %}
<th scope="row">{{ entry.number }}</th>{{ td("Time", entry.time|when, "short") }}
{{ td("Move", moves.get(entry.op, entry.op)) }}{{ td("Instead of", entry.displaced, "num") }}
{{ td("By", entry.actor) }}{{ td("Why", entry.reason, "text") }}
{% endcall %}
{% endcall %}
{% endblock %}
""",
    "compare": """\
{% extends "inner" %}
{% from "parts" import chip, section, table, td, verdict %}
{% set one, two = sides %}
{% block title %}Versions {{ sides[0].version }} and {{ sides[1].version }} - {{ model }}
{%- endblock %}
{% block heading %}Version {{ sides[0].version }} and version {{ sides[1].version }}{% endblock %}
{% block content %}
{% set heads = ("Version " ~ one.version, "Version " ~ two.version) %}
{% call section("sides", "Side by side") %}
{% if paired and paired.interval %}
{% call verdict({"better": "good", "worse": "bad"}.get(paired.verdict, ""), "On the same " ~
 paired.examples ~ " examples") %}version {{ two.version }} is
 {{ paired.verdict if paired.verdict != "undecided" else "neither better nor worse" }}: by
 {{ paired.mean_difference|signed_text }} on average, and
 {{ paired.interval[0]|signed_text }} to {{ paired.interval[1]|signed_text }} with a confidence of
 {{ "%.0f"|format(100 * paired.confidence) }} %.{% endcall %}
{% else %}
<p class="muted">They cannot be compared example by example: there are too few shared examples.</p>
{% endif %}
<div class="cards">
{% for side in sides %}
<article class="card" aria-labelledby="side-{{ loop.index }}">
<h3 id="side-{{ loop.index }}"><a href="/page/version?version={{ side.version }}">Version
 {{ side.version }}</a>
 {{ chip(side.stage, "pending" if side is pending else side.stage|lower) }}</h3>
<dl>
<div><dt>Score</dt><dd>{{ side|score_text or "none" }}</dd></div>
<div><dt>Registered</dt><dd>{{ side.created|when }}</dd></div>
<div><dt>Why</dt><dd>{{ side.tags.get("reason", "") or "not recorded" }}</dd></div>
<div><dt>Data</dt><dd>{{ side|nodes_text or "not known" }}</dd></div>
</dl>
</article>
{% endfor %}
</div>
<p><a href="/page/compare?first={{ two.version }}&amp;second={{ one.version }}">The other way
 round</a></p>
{% endcall %}

{% call section("metrics", "Metrics") %}
{% for id, title, rows in (("metrics", "Of all examples", metrics), ("classes", "By class",
 classes)) %}
{% call(line) table(id, title, rows, ("Metric" if id == "metrics" else "Class",) + heads
 + ("Difference",), empty="Neither has metrics." if id == "metrics" else "") %}
<th scope="row">{{ line[0] }}</th>
{{ td(heads[0], "-" if line[1] is none else line[1]|number_text, "num") }}
{{ td(heads[1], "-" if line[2] is none else line[2]|number_text, "num") }}
{{ td("Difference", "-" if line[3] is none else line[3]|signed_text, "num") }}
{% endcall %}
{% endfor %}
{% endcall %}

{% call section("data", "Data") %}
{% call(line) table("nodes", "Examples of each node", nodes, ("Node",) + heads + ("Between them",),
 empty="It is not known from which nodes they were made.") %}
<th scope="row">{{ line[0] }}</th>
{{ td(heads[0], "-" if line[1] is none else "{:,.0f}".format(line[1]), "num") }}
{{ td(heads[1], "-" if line[2] is none else "{:,.0f}".format(line[2]), "num") }}
{{ td("Between them", line[3]) }}
{% endcall %}
{% endcall %}

{% call section("params", "Settings and arrays") %}
{% call(name) table("params", "Params of their runs that differ", (params or {})|list,
 ("Param",) + heads, empty="The params of their runs are equal." if params is not none else
 "The params of their runs are not known.") %}
<th scope="row">{{ name }}</th>{{ td(heads[0], params[name][0]|string, "text") }}
{{ td(heads[1], params[name][1]|string, "text") }}
{% endcall %}
{% if architecture is none %}<p class="muted">Their arrays are not known.</p>
{% elif architecture.values()|select|list %}
<p>Their arrays differ:
{% for what, names in architecture.items() if names %}
 {{ what|replace("_", " ") }}: {{ names|list|join(", ")|string }}{{ ";" if not loop.last }}
{% endfor %}</p>
{% else %}<p class="muted">They have the same arrays.</p>{% endif %}
{% endcall %}

{% call section("pictures", "Pictures") %}
{% if same_run and pictures %}
<p class="hint">Both are of one session, whose pictures show its best version.
 <a href="/page/version?version={{ two.version }}#pictures">They are here</a>.</p>
{% elif pictures %}
<p class="hint">Of the two sessions that made them. Each shows its session's best version.</p>
{% for name in pictures %}
<h3>{{ name }}</h3>
<div class="pair">
{% for side in sides %}
<figure class="card"><img loading="lazy" alt="{{ name }} of the run of version {{ side.version }}"
 src="/page/picture?version={{ side.version }}&amp;name={{ name|urlencode }}">
<figcaption>version {{ side.version }}</figcaption></figure>
{% endfor %}
</div>
{% endfor %}
{% else %}
<p class="muted">There are no pictures that both have: a session draws them at its end.</p>
{% endif %}
{% endcall %}
{% endblock %}
""",
    "list": """\
{% extends "inner" %}
{% from "parts" import section, table, version_heads, version_row %}
{% block title %}Versions - {{ model }}{% endblock %}
{% block heading %}Versions{% endblock %}
{% block content %}
<form method="get" action="/page/versions" class="inline card">
<label for="stage">Stage</label>
<select id="stage" name="stage">
{% for name in ("", "None", "Staging", "Production", "Archived") %}
<option{% if name == query.stage %} selected{% endif %} value="{{ name }}">{{ name or "any" }}
</option>
{% endfor %}
</select>
<label for="since">Registered since</label>
<input id="since" name="since" type="date" value="{{ query.since[:10] }}">
<label for="sort">Order</label>
<select id="sort" name="sort">
{% for name, words in (("newest", "newest first"), ("oldest", "oldest first"),
 ("best", "highest score first"), ("worst", "lowest score first")) %}
<option{% if name == query.sort %} selected{% endif %} value="{{ name }}">{{ words }}</option>
{% endfor %}
</select>
<button class="quiet">Show</button>
</form>
{% if rows %}
{% call(row) table("versions", "Versions " ~ first ~ " to " ~ (first + rows|length - 1), rows,
 version_heads) %}
{{ version_row(row, moves_of, can_export) }}
{% endcall %}
{% elif query.page > 1 %}
<p class="muted">There are no more versions.</p>
{% else %}
<p class="muted">There is no version like that. <a href="/page/versions">Show all</a></p>
{% endif %}
<nav class="pages" aria-label="Parts of the list">
{% set given = "stage=" ~ query.stage|urlencode ~ "&since=" ~ query.since|urlencode ~ "&sort=" ~
 query.sort %}
{% if query.page > 1 %}
<a class="button quiet" href="/page/versions?{{ given }}&page={{ query.page - 1 }}">Before</a>
{% endif %}
{% if more %}
<a class="button quiet" href="/page/versions?{{ given }}&page={{ query.page + 1 }}">Next</a>
{% endif %}
</nav>
{% endblock %}
""",
    "models": """\
{% extends "inner" %}
{% from "parts" import table, td %}
{% block title %}Models - {{ model }}{% endblock %}
{% block heading %}Models of this store{% endblock %}
{% block content %}
{% call(name) table("models", "Registered models in the same place", models|list,
 ("Model", "In Production", "How to open its page"),
 empty="There is no other model in this store.") %}
<th scope="row">{{ name }}</th>
{{ td("In Production", "version " ~ models[name].production if models[name].production
 else "nothing") }}
{% call td("How to open its page", kind="text") %}
{% if name == model %}<a href="/">this page</a>{% else %}
<code>fl-app serve --name {{ name|quote }} --port 5002</code>{% endif %}{% endcall %}
{% endcall %}
{% endblock %}
""",
    "api": """\
{% extends "inner" %}
{% from "parts" import chip, section, table, td %}
{% block title %}REST API - {{ model }}{% endblock %}
{% block heading %}REST API{% endblock %}
{% block content %}
<p>{{ document.info.description }} Each answer is JSON, and an error has the fields
 <code>error</code> and <code>detail</code>. <a href="/openapi.json">/openapi.json</a> describes the
 same for programs{% if token %}; it takes the token as the routes do{% endif %}.</p>
{% if token %}
<p>All routes but <code>/health</code> take a token:
 <code>curl -H "Authorization: Bearer $FL_APP_API_TOKEN" {{ base }}/status</code></p>
{% endif %}
{% for route in routes %}
{% call section(route.id, route.method ~ " " ~ route.path, "card") %}
<p>{{ route.summary }} {{ route.more }}</p>
{% set what = "What " ~ route.method ~ " " ~ route.path %}
{% call(field) table(route.id ~ "-takes", what ~ " takes", route.takes, ("Name", "In", "Type",
 "Meaning")) %}
<th scope="row"><code>{{ field.name }}</code>{% if field.required %} (required){% endif %}</th>
{{ td("In", field.place, "short") }}{{ td("Type", field.type) }}
{{ td("Meaning", field.meaning, "text") }}
{% endcall %}
{% call(field) table(route.id ~ "-gives", what ~ " answers, with status " ~ route.status,
 route.gives, ("Name", "Type", "Meaning")) %}
<th scope="row"><code>{{ field.name }}</code></th>{{ td("Type", field.type) }}
{{ td("Meaning", field.meaning, "text") }}
{% endcall %}
<p class="hint">Example</p>
<pre tabindex="0"><code>{{ route.example }}</code></pre>
{% endcall %}
{% endfor %}
{% endblock %}
""",
}
"""By name."""
