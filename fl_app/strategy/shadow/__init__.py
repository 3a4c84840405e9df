# SPDX-License-Identifier: Apache-2.0
"""Shadow rounds: nodes evaluate a candidate and the production version on their own data."""
