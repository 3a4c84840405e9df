# SPDX-License-Identifier: AGPL-3.0-or-later
"""`python -m fl_app.cli`: the same as `fl-app`."""

from fl_app.cli.main import main

main()
