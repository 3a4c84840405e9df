# SPDX-License-Identifier: Apache-2.0
"""Runs the migrations on the connection that `fl_app.retraining.memory.schema` gives to alembic."""

from alembic import context

from fl_app.retraining.memory.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
