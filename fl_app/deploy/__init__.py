# SPDX-License-Identifier: Apache-2.0
"""A deployment on one machine: MLflow, a SuperLink and its SuperNodes, each a process.

Only the command line imports it. On several machines other programs start these processes.
"""
