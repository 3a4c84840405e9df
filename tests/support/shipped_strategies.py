# SPDX-License-Identifier: Apache-2.0
"""Every strategy that Flower exports, with settings that five nodes can serve."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

NODES = (1, 2, 3, 4, 5)

Make = Callable[..., Strategy]
"""Makes a new strategy; settings such as ``fraction_evaluate`` go to the one that samples nodes."""


def around_fedavg(wrapper: Callable[..., Strategy], **settings: Any) -> Make:
    """A wrapper for differential privacy around FedAvg."""

    def make(**inside: Any) -> Strategy:
        return wrapper(FedAvg(**inside), num_sampled_clients=len(NODES), **settings)

    return make


OF_ARRAYS: dict[str, Make] = {
    "FedAvg": FedAvg,
    "FedProx": partial(flower.FedProx, proximal_mu=0.1),
    "FedAvgM": partial(flower.FedAvgM, server_momentum=0.9, server_learning_rate=0.5),
    "FedAdam": flower.FedAdam,
    "FedYogi": flower.FedYogi,
    "FedAdagrad": flower.FedAdagrad,
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": partial(flower.FedTrimmedAvg, beta=0.2),
    "Krum": partial(flower.Krum, num_malicious_nodes=1),
    "MultiKrum": partial(flower.MultiKrum, num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": partial(flower.Bulyan, num_malicious_nodes=0),
    "QFedAvg": partial(flower.QFedAvg, client_learning_rate=0.1),
    "DifferentialPrivacyServerSideFixedClipping": around_fedavg(
        flower.DifferentialPrivacyServerSideFixedClipping, noise_multiplier=0.1, clipping_norm=1.0
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": around_fedavg(
        flower.DifferentialPrivacyServerSideAdaptiveClipping, noise_multiplier=0.1
    ),
    "DifferentialPrivacyClientSideFixedClipping": around_fedavg(
        flower.DifferentialPrivacyClientSideFixedClipping, noise_multiplier=0.1, clipping_norm=1.0
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": around_fedavg(
        flower.DifferentialPrivacyClientSideAdaptiveClipping, noise_multiplier=0.1
    ),
}
"""Those whose model is arrays of floats."""

OF_TREES: dict[str, Make] = {
    "FedXgbBagging": flower.FedXgbBagging,
    "FedXgbCyclic": flower.FedXgbCyclic,
}
"""Those whose model is a document of XGBoost's, as one array of bytes."""

NO_STRATEGIES = {"Result", "Strategy"}
"""What else Flower exports there."""
