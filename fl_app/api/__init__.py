# SPDX-License-Identifier: Apache-2.0
"""The REST API of the monitor and the registry, and the status page."""

from fl_app.api.app import ApiServer, create_trigger_api, serve_api

__all__ = ["ApiServer", "create_trigger_api", "serve_api"]
