# SPDX-License-Identifier: Apache-2.0
"""What the status page shows and how it looks; its routes are in `fl_app.api.page.routes`.

Templates and style are Python files, since Flower's bundle leaves `.html` and `.css` out.
"""
