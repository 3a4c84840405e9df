# SPDX-License-Identifier: Apache-2.0
"""`python -m fl_app.cli`: the same as `fl-app`."""

from fl_app.cli.main import program

program()
