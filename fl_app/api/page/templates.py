# SPDX-License-Identifier: Apache-2.0
"""The page's layout and parts, and how templates are filled: all text from outside is escaped.

Templates are texts in Python files: Flower's bundle of an app includes `.py`, `.toml`, `.md`,
`.yaml` and `.json` files only, so `.html` files would be missing in a run.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from shlex import quote
from uuid import uuid4

from flask import g, session
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fl_app.api.page.details import DETAILS
from fl_app.api.page.sections import SECTIONS
from fl_app.api.page.versions import MOVE_WORDS
from fl_app.api.people import Person
from fl_app.versions.texts import is_pending, nodes_text, score_metric, score_text, why_text
from fl_registry.numbers import number_text
from fl_registry.redaction import printable

MOST_CHARACTERS = 600
"""Characters of a text from outside that are shown."""
MOVES = {
    "stage": "to Staging",
    "promote": "to Production",
    "archive": "archived",
    "rollback": "rolled back to",
    "restore": "back to Staging",
    "adopt": "adopted from MLflow",
    "retire": "removed for good",
    "acknowledge": "loss acknowledged",
    "lease": "server that writes",
    "carry": "journal continued",
}
"""The journal's moves in words."""

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">\
<rect width="32" height="32" rx="7" fill="#1f5fbf"/>\
<path d="M7 21l6-6 5 4 7-9" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round" \
stroke-linejoin="round"/></svg>"""

TEMPLATES = {
    "layout": """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% block title %}{% endblock %}</title>
<link rel="icon" href="/page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/page/style.css">
{% block script %}<script src="/page/live.js" defer></script>{% endblock %}
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
""",
    "sign_in": """\
{% extends "layout" %}
{% from "parts" import form, result, text_input %}
{% block title %}Sign in - {{ model }}{% endblock %}
{% block script %}{% endblock %}
{% block body %}
<main class="narrow card">
<h1>{{ model }}</h1>
{{ result(message) }}
<p>The versions of this model, who decided what, and why.</p>
{% call form("sign-in", "Sign in") %}
<input value="{{ model }}" autocomplete="username" hidden>
{% call text_input("token", "token", "Token", 512, complete="current-password", type="password") %}
Your own, from <code>fl-app people add</code>, or the server's: the content of
<code>FL_APP_API_TOKEN</code> or of its token file.
{% endcall %}
{% endcall %}
</main>
{% endblock %}
""",
    "problem": """\
{% extends "layout" %}
{% block title %}{{ status }}{% endblock %}
{% block script %}{% endblock %}
{% block body %}
<main class="narrow card">
<h1>{{ status }}</h1>
<p>{{ detail }}</p>
<p><a href="/">To the page</a></p>
</main>
{% endblock %}
""",
    "parts": """\
{% macro result(message) %}
{% if message %}
<p class="message {{ message[0] }}" role="{{ 'alert' if message[0] == 'refused' else 'status' }}"
 tabindex="-1" autofocus>
<strong>{{ "Done." if message[0] == "done" else "Not done." }}</strong> {{ message[1] }}</p>
{% endif %}
{% endmacro %}

{% macro form(action, button, kind="", version="") %}
<form method="post" action="/page/{{ action }}" class="fields">
<input type="hidden" name="form" value="{{ session["form"] }}">
<input type="hidden" name="once" value="{{ nonce() }}">
{% if version %}<input type="hidden" name="version" value="{{ version }}">{% endif %}
{{ caller() }}
<button{% if kind %} class="{{ kind }}"{% endif %}>{{ button }}</button>
</form>
{% endmacro %}

{% macro text_input(id, name, label, limit=500, value="", required=True, complete="off",
 type="text") %}
<div class="field">
<label for="{{ id }}">{{ label }}
 {%- if not required %} <span class="muted">(optional)</span>{% endif %}</label>
<input id="{{ id }}" name="{{ name }}" value="{{ value }}" maxlength="{{ limit }}"
 type="{{ type }}" autocomplete="{{ complete }}"{% if required %} required{% endif %}
 {%- if caller is defined %} aria-describedby="{{ id }}-hint"{% endif %}>
{% if caller is defined %}<p class="hint" id="{{ id }}-hint">{{ caller() }}</p>{% endif %}
</div>
{% endmacro %}

{% macro your_name(id) %}
{% if person().name %}<p class="muted">As {{ person().name }}, who is signed in.</p>
{% else %}
{{ text_input(id, "by", "Your name", 100, session.get("name", ""), complete="name") }}
{% endif %}
{% endmacro %}

{% macro td(head, value="", kind="") %}
<td data-head="{{ head }}"{% if kind %} class="{{ kind }}"{% endif %}>
{%- if caller is defined %}{{ caller() }}{% else %}{{ value }}{% endif -%}
</td>
{% endmacro %}

{% set version_heads = ("Version", "Stage", "Score", "Round", "Registered", "Weights", "Why") %}
{% macro version_row(row, moves_of, can_export) %}
<th scope="row"><a href="/page/version?version={{ row.version }}">{{ row.version }}</a></th>
{% call td("Stage", kind="short") %}
{{ chip(row.stage, "pending" if row is pending else row.stage|lower) }}
 {%- if row is pending or row.tags.get("approval") in ("rejected", "superseded") %}
 <span class="muted">{{ row.tags.approval }}</span>{% endif %}{% endcall %}
{{ td("Score", row|score_text, "num") }}{{ td("Round", row.tags.get("round", ""), "num") }}
{{ td("Registered", row.created|when, "short") }}
{% call td("Weights", kind="short") %}
{% for format in ("safetensors", "pt") if format != "pt" or can_export %}
<a href="/page/weights?version={{ row.version }}&amp;format={{ format }}"
 aria-label="Download version {{ row.version }} as .{{ format }}">.{{ format }}</a>
{% endfor %}{% endcall %}
{{ td("Why", row|why_text(moves_of), "text") }}
{% endmacro %}

{% macro chip(text, kind) %}<span class="chip {{ kind }}">{{ text }}</span>{% endmacro %}

{% macro section(id, title, kind="") %}
<section id="{{ id }}"{% if kind %} class="{{ kind }}"{% endif %} aria-labelledby="{{ id }}-title">
<h2 id="{{ id }}-title">{{ title }}</h2>
{{ caller() }}
</section>
{% endmacro %}

{% macro table(id, caption, rows, heads, total=0, most=200, command="", empty="") %}
{% set shown, total = rows[:most], total or rows|length %}
{% if rows %}
<div class="scroll card" tabindex="0" role="region" aria-labelledby="{{ id }}-table">
<table class="rows">
<caption id="{{ id }}-table">{{ caption }}
 {%- if shown|length < total %}; {{ shown|length }} of {{ total }}
 {%- if command %} (<code>{{ command }}</code> lists all){% endif %}{% endif %}</caption>
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in shown %}
<tr>{{ caller(row) }}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% elif empty %}
<p class="muted">{{ empty }}</p>
{% endif %}
{% endmacro %}

{% macro alert(sentence) %}
{% if sentence %}<p class="message refused" role="alert">{{ sentence }}</p>{% endif %}
{% endmacro %}

{% macro verdict(kind, title) %}
<p class="verified {{ kind }}"><strong>{{ title }}</strong> {{ caller() }}</p>
{% endmacro %}
""",
    "page": """\
{% extends "layout" %}
{% from "parts" import alert, form, result %}
{% block title %}{{ model }} - fl-app{% endblock %}
{% block body %}
<a class="skip" href="#main">Skip to the content</a>
<header class="top">
<div>
<p class="muted">fl-app</p>
<h1>{{ model }}</h1>
</div>
<div class="tools">
<p class="muted" id="read">Read {{ read_at|when }}</p>
<a class="button quiet" href="/">Refresh</a>
{% if person().name %}<p class="muted">{{ person().name }} (may {{ person().role }})</p>{% endif %}
{% if can_sign_out %}{% call form("sign-out", "Sign out", "quiet") %}{% endcall %}{% endif %}
</div>
</header>
<nav class="sections" aria-label="Sections">
<ul>
{% if registry %}<li><a href="#now">Now</a></li>
<li><a href="#curves">Scores</a></li>
<li><a href="#versions">Versions</a></li>{% endif %}
<li><a href="#retraining">Retraining</a></li>
<li><a href="#drift">Data drift</a></li>
{% if registry %}<li><a href="#ledger">Ledger</a></li>
<li><a href="/page/versions">All versions</a></li>
<li><a href="/page/models">Models</a></li>{% endif %}
<li><a href="/docs">REST API</a></li>
</ul>
</nav>
<p id="news" class="muted" role="status"></p>
<main id="main" tabindex="-1">
{{ result(message) }}
{% include "session" %}
{% for part, why in monitor.health.failing|dictsort %}
{{ alert(part ~ " fails, and the run goes on: " ~ why) }}
{% endfor %}
{% if registry %}{% include "registry" %}{% endif %}
{% include "monitor" %}
{% if registry %}{% include "ledger" %}{% endif %}
</main>
<footer>
<p class="muted">Everything here is also on the command line: <code>fl-app status</code>,
<code>fl-app versions</code>, <code>fl-app history</code>, <code>fl-app doctor</code>.
<span id="zone">Without scripts, times are in UTC.</span></p>
</footer>
{% endblock %}
""",
    "inner": """\
{% extends "layout" %}
{% block body %}
<a class="skip" href="#main">Skip to the content</a>
<header class="top">
<div>
<p class="muted"><a href="/">{{ model }}</a></p>
<h1>{% block heading %}{% endblock %}</h1>
</div>
<div class="tools"><a class="button quiet" href="/">To the page</a></div>
</header>
<main id="main" tabindex="-1">
{% block content %}{% endblock %}
</main>
<footer><p class="muted" id="zone">Without scripts, times are in UTC.</p></footer>
{% endblock %}
""",
    "live": """\
{% extends "layout" %}
{% block title %}Session - {{ model }}{% endblock %}
{% block script %}<noscript><meta http-equiv="refresh" content="5"></noscript>{% endblock %}
{% block body %}
<main class="live">
<h1>{{ model }}</h1>
{% include "session" %}
{% if not live %}<p>No session is under way here.</p>{% endif %}
<p><a href="/">To the page</a></p>
</main>
{% endblock %}
""",
    **SECTIONS,
    **DETAILS,
}
"""By name."""


def shown(value: object) -> object:
    """A text from outside as one printable line that is not too long."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = printable(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def when(given: str | datetime) -> Markup:
    """A moment for people and programs."""
    moment = datetime.fromisoformat(given) if isinstance(given, str) else given
    moment = moment.astimezone(UTC)
    element = Markup('<time datetime="{}">{}</time>')
    return element.format(moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M} UTC")


def evidence_text(value: float) -> str:
    """A sum of e-values, which may be very large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time span for people, to the minute from a few minutes on."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def bytes_text(size: int) -> str:
    """A file's size."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def signed_text(value: float) -> str:
    """A difference, with its sign."""
    return f"{'+' if value > 0 else ''}{number_text(value)}"


def person() -> Person:
    """Who is looking."""
    found: Person = g.person
    return found


def may_decide() -> bool:
    """Whether who is looking may change anything."""
    return person().role == "decide"


PHASES = {
    "starting": "It starts",
    "waiting": "It waits for nodes",
    "train": "The nodes train",
    "evaluate": "The nodes evaluate",
    "finishing": "The rounds are over; it finishes",
}
"""The phases of a session in words."""


def share(evidence: float, height: float) -> float:
    """How near evidence is to the alarm, 0 to 1, by logarithm."""
    return min(1.0, math.log1p(max(evidence, 0.0)) / math.log1p(height))


_ENVIRONMENT = Environment(
    loader=DictLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_FILTERS = (
    *(when, score_text, score_metric, number_text, nodes_text, why_text, evidence_text, share),
    *(duration, bytes_text, signed_text, quote),
)
_ENVIRONMENT.filters.update({function.__name__: function for function in _FILTERS})
_ENVIRONMENT.tests["pending"] = is_pending
_ENVIRONMENT.globals.update(
    moves=MOVES,
    move_words=MOVE_WORDS,
    phase_words=PHASES,
    session=session,
    nonce=lambda: uuid4().hex,
    person=person,
    may_decide=may_decide,
)


def render(template: str, /, **values: object) -> str:
    """Fill one of the templates."""
    return _ENVIRONMENT.get_template(template).render(values)
