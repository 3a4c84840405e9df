# SPDX-License-Identifier: Apache-2.0
"""Hooks that ship with the app; any callable that takes an event is a hook too."""

from fl_app.hooks.log import log_event
from fl_app.hooks.prometheus import PrometheusMetrics
from fl_app.hooks.queue import Hooks
from fl_app.hooks.webhook import Webhook

__all__ = ["Hooks", "PrometheusMetrics", "Webhook", "log_event"]
