# SPDX-License-Identifier: Apache-2.0
"""A deployment on one machine: MLflow on PostgreSQL, a SuperLink and its SuperNodes, as processes.

Nothing else imports it but the command line; on several machines or in Kubernetes others start
these processes.
"""
