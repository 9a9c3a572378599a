"""Flower, run by the Python of its own environment: a server, or one client, as a process.

`flower_round.py serve PORT CLIENTS ROUNDS` prints the seconds of each round as a JSON list;
`flower_round.py client PORT INDEX` takes part until the server ends. Training adds a prepared
update to a model of a million float32 values, as `benchmarks.round_task` does.
"""

import json
import sys
import time
from typing import Any

import flwr
import numpy as np

PARAMETERS = 1_000_000
EXAMPLES = 20


class Client(flwr.client.NumPyClient):  # type: ignore[misc] # it has no types here
    """Adds its update."""

    def __init__(self, index: int) -> None:
        chance = np.random.default_rng(index)
        self.update = (chance.standard_t(3, PARAMETERS) * 1e-3).astype(np.float32)

    def fit(self, parameters: Any, config: Any) -> Any:  # noqa: ARG002 - as Flower calls it
        """The model and the update."""
        return [parameters[0] + self.update], EXAMPLES, {}


class Timed(flwr.server.strategy.FedAvg):  # type: ignore[misc] # as above
    """Federated averaging that notes when a round begins and when its model is there."""

    def __init__(self, count: int) -> None:
        first = flwr.common.ndarrays_to_parameters([np.zeros(PARAMETERS, np.float32)])
        super().__init__(
            fraction_fit=1.0,
            fraction_evaluate=0.0,
            min_fit_clients=count,
            min_available_clients=count,
            initial_parameters=first,
        )
        self.began_s = 0.0
        self.round_s: list[float] = []

    def configure_fit(self, *arguments: Any, **named: Any) -> Any:
        """A round begins."""
        made = super().configure_fit(*arguments, **named)  # waits until all are there
        self.began_s = time.monotonic()
        return made

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """A round ends."""
        made = super().aggregate_fit(server_round, results, failures)
        if failures:
            raise SystemExit(f"round {server_round}: {len(failures)} clients failed")
        self.round_s.append(time.monotonic() - self.began_s)
        return made


def main() -> None:
    """As the module says."""
    role, port = sys.argv[1], sys.argv[2]
    if role == "client":
        client = Client(int(sys.argv[3])).to_client()
        flwr.client.start_client(server_address=f"127.0.0.1:{port}", client=client, insecure=True)
        return
    strategy = Timed(int(sys.argv[3]))
    flwr.server.start_server(
        server_address=f"127.0.0.1:{port}",
        config=flwr.server.ServerConfig(num_rounds=int(sys.argv[4])),
        strategy=strategy,
    )
    print(json.dumps(strategy.round_s), flush=True)


if __name__ == "__main__":
    main()
