# SPDX-License-Identifier: Apache-2.0
"""What several tests need: servers, apps, nodes, faults, and stories."""
