# SPDX-License-Identifier: Apache-2.0
"""The status page: `routes.py` has its routes, `overview.py` what it shows.

Templates and style are Python files, since Flower's bundle leaves `.html` and `.css` out.
"""
