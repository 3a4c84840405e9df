# SPDX-License-Identifier: Apache-2.0
"""The page's layout and parts, and how templates are filled: all text from outside is escaped.

Templates are texts in Python files: Flower's bundle of an app includes `.py`, `.toml`, `.md`,
`.yaml` and `.json` files only, so `.html` files would be missing in a run.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from fl_app.api.page.monitor_templates import MONITOR
from fl_app.api.page.registry_templates import REGISTRY
from fl_app.api.page.registry_view import (
    MOVES,
    PHASES,
    is_pending,
    nodes_text,
    number_text,
    score_text,
)
from fl_app.retraining.drift.state import DriftCheck
from fl_registry.redaction import printable

MOST_CHARACTERS = 600
"""Characters of a text from outside that are shown."""

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">\
<rect width="32" height="32" rx="7" fill="#1f5fbf"/>\
<path d="M7 21l6-6 5 4 7-9" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round" \
stroke-linejoin="round"/></svg>"""

LAYOUT = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% block title %}{% endblock %}</title>
<link rel="icon" href="/page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/page/style.css">
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""

SIGN_IN = """\
{% extends "layout" %}
{% from "parts" import result %}
{% block title %}Sign in - {{ model }}{% endblock %}
{% block body %}
<main class="narrow card">
<h1>{{ model }}</h1>
{{ result(message) }}
<p>The versions of this model, who decided what, and why.</p>
<form method="post" action="/page/sign-in" class="fields">
<input type="hidden" name="form" value="{{ form }}">
<input value="{{ model }}" autocomplete="username" hidden>
<div class="field">
<label for="token">Token</label>
<input id="token" name="token" type="password" required maxlength="512"
 autocomplete="current-password" aria-describedby="token-hint">
<p class="hint" id="token-hint">The content of <code>FL_APP_API_TOKEN</code> or of the server's
 token file.</p>
</div>
<button>Sign in</button>
</form>
</main>
{% endblock %}
"""

PROBLEM = """\
{% extends "layout" %}
{% block title %}{{ status }}{% endblock %}
{% block body %}
<main class="narrow card">
<h1>{{ status }}</h1>
<p>{{ detail }}</p>
<p><a href="/">To the page</a></p>
</main>
{% endblock %}
"""

PARTS = """\
{% macro result(message) %}
{% if message %}
<p class="message {{ message[0] }}" role="{{ 'alert' if message[0] == 'refused' else 'status' }}"
 tabindex="-1" autofocus>
<strong>{{ "Done." if message[0] == "done" else "Not done." }}</strong> {{ message[1] }}</p>
{% endif %}
{% endmacro %}

{% macro hidden(form, once, version=None) %}
<input type="hidden" name="form" value="{{ form }}">
<input type="hidden" name="once" value="{{ once }}">
{% if version %}<input type="hidden" name="version" value="{{ version }}">{% endif %}
{% endmacro %}

{% macro text_input(id, name, label, value="", limit=500, required=True, hint="", complete="off") %}
<div class="field">
<label for="{{ id }}">{{ label }}
 {%- if not required %} <span class="muted">(optional)</span>{% endif %}</label>
<input id="{{ id }}" name="{{ name }}" value="{{ value }}" maxlength="{{ limit }}"
 autocomplete="{{ complete }}"{% if required %} required{% endif %}
 {%- if hint %} aria-describedby="{{ id }}-hint"{% endif %}>
{% if hint %}<p class="hint" id="{{ id }}-hint">{{ hint }}</p>{% endif %}
</div>
{% endmacro %}

{% macro your_name(id, name) %}
{{ text_input(id, "by", "Your name", name, 100, complete="name") }}
{% endmacro %}

{% macro chip(text, kind) %}<span class="chip {{ kind }}">{{ text }}</span>{% endmacro %}

{% macro table(id, caption, heads) %}
<div class="scroll card" tabindex="0" role="region" aria-labelledby="{{ id }}">
<table>
<caption id="{{ id }}">{{ caption }}</caption>
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{{ caller() }}
</tbody>
</table>
</div>
{% endmacro %}

{% macro part(shown, total, command="") %}
{% if shown < total %}; {{ shown }} of {{ total }}
{%- if command %} (<code>{{ command }}</code> lists all){% endif %}{% endif %}
{% endmacro %}

{% macro alert(sentence) %}
{% if sentence %}<p class="message refused" role="alert">{{ sentence }}</p>{% endif %}
{% endmacro %}
"""

PAGE = """\
{% extends "layout" %}
{% from "parts" import alert, result %}
{% block title %}{{ model }} - fl-app{% endblock %}
{% block body %}
<a class="skip" href="#main">Skip to the content</a>
<header class="top">
<div>
<p class="muted">fl-app</p>
<h1>{{ model }}</h1>
</div>
<div class="tools">
<p class="muted">Read {{ read_at|when }}</p>
<a class="button quiet" href="/">Refresh</a>
{% if signs %}
<form method="post" action="/page/sign-out">
<input type="hidden" name="form" value="{{ form }}">
<button class="quiet">Sign out</button>
</form>
{% endif %}
</div>
</header>
<nav class="sections" aria-label="Sections">
<ul>
{% if registry %}<li><a href="#now">Now</a></li>
<li><a href="#curves">Scores</a></li>
<li><a href="#versions">Versions</a></li>{% endif %}
<li><a href="#retraining">Retraining</a></li>
<li><a href="#drift">Data drift</a></li>
{% if registry %}<li><a href="#ledger">Ledger</a></li>{% endif %}
</ul>
</nav>
<main id="main" tabindex="-1">
{{ result(message) }}
{% for part, why in failing|dictsort %}
{{ alert(part ~ " fails, and the run goes on: " ~ why) }}
{% endfor %}
{% if registry %}{% include "registry" %}{% endif %}
{% include "monitor" %}
{% if registry %}{% include "ledger" %}{% endif %}
</main>
<footer>
<p class="muted">Everything here is also on the command line: <code>fl-app status</code>,
<code>fl-app versions</code>, <code>fl-app history</code>, <code>fl-app doctor</code>.
All times are in UTC.</p>
</footer>
{% endblock %}
"""


def render(template: str, /, **values: object) -> str:
    """Fill one of the templates ``page``, ``sign_in`` and ``problem``."""
    return _TEMPLATES.get_template(template).render(values)


def _shown(value: object) -> object:
    """A text from outside as one printable line that is not too long."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = printable(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def _when(iso: str) -> Markup | str:
    """A moment for people and programs; what is no moment as it is."""
    try:
        moment = datetime.fromisoformat(iso).astimezone(UTC)
    except ValueError:
        return iso
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(timespec="seconds"), escape(f"{moment:%Y-%m-%d %H:%M}")
    )


def _evidence(value: float) -> str:
    """A sum of e-values, which may be very large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _share(evidence: float, height: float) -> float:
    """How near evidence is to the alarm, 0 to 1, by logarithm."""
    return min(1.0, math.log1p(max(evidence, 0.0)) / math.log1p(height))


def _mean_evidence(check: DriftCheck) -> float:
    return sum(one.evidence for one in check.features) / len(check.features)


def _environment() -> Environment:
    templates = {
        "layout": LAYOUT,
        "page": PAGE,
        "sign_in": SIGN_IN,
        "problem": PROBLEM,
        "parts": PARTS,
        **REGISTRY,
        **MONITOR,
    }
    environment = Environment(
        loader=DictLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        when=_when,
        score=score_text,
        number=number_text,
        pending=is_pending,
        nodes=nodes_text,
        evidence=_evidence,
        share=_share,
        mean_evidence=_mean_evidence,
    )
    environment.globals.update(moves=MOVES, phases=PHASES)
    return environment


_TEMPLATES = _environment()
