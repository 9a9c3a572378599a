"""Run iotcore's broker in this process until it is killed: it has no way to stop.

Run by file name with the path of a rumqttd TOML file; it needs iotcore and nothing of potluck.
"""

import logging
import sys

from iotcore.iotcore import IotCoreBroker


def main() -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # rumqttd routes inside error spans: every packet would be a line at level ERROR.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=sys.argv[1]).run_forever()


if __name__ == "__main__":
    main()
