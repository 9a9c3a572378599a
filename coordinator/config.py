"""The one file that describes a federation: every key, its default, its bounds.

`docs/how-to/federation-file.md` has a line on each key; a test compares the two.
"""

import math
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from coordinator.signals import AggregationPlan
from quantization import AutoRule, check_spec, name_of, resolve_downlink
from wire import LocalProtocolError, limits, settings, topics
from wire.messages import Plan

Share = Annotated[float, Meta(gt=0.0, le=1.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Codec = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
_AUTO: Final = "auto"


class Federation(Struct, frozen=True, forbid_unknown_fields=True):
    """[federation]: what it is called, and what it learns."""

    name: str = "digits"
    task: str = "pilots.digits:task"


class Rounds(Struct, frozen=True, forbid_unknown_fields=True):
    """[rounds]: how many, with how many devices, for how long, and what each device does."""

    mode: Literal["sync", "async"] = "sync"
    count: Count = 30
    cohort: Annotated[int, Meta(ge=1, le=limits.UPDATES_PER_ROUND_MAX)] = 20
    over_select: Annotated[float, Meta(ge=1.0, le=10.0)] = 1.3
    quorum: Share = 0.7
    deadline: Literal["fixed", "auto"] = "fixed"
    deadline_s: Annotated[float, Meta(gt=0.0, le=limits.DEADLINE_S_MAX)] = 60.0
    every_s: Annotated[float, Meta(ge=0.0, le=limits.DEADLINE_S_MAX)] = 0.0
    bytes_max: Annotated[int, Meta(ge=0, le=10**15)] = 0
    local_epochs: Annotated[int, Meta(ge=1, le=limits.EPOCHS_MAX)] = 1
    batch: Annotated[int, Meta(ge=1, le=limits.BATCH_MAX)] = 10
    learning_rate: Annotated[float, Meta(gt=0.0, le=1e6)] = 0.1
    staleness_max: Annotated[int, Meta(ge=0, le=1_000)] = 10
    evaluate_every: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    evaluate_cohort: Annotated[int, Meta(ge=1, le=limits.UPDATES_PER_ROUND_MAX)] = 20

    @property
    def evaluations_needed(self) -> int:
        """Reports without which an evaluation says nothing: ceil(quorum * evaluate_cohort)."""
        return math.ceil(round(self.quorum * self.evaluate_cohort, 9))

    @property
    def needed(self) -> int:
        """Updates without which a round is abandoned: ceil(quorum * cohort)."""
        return math.ceil(round(self.quorum * self.cohort, 9))

    @property
    def to_invite(self) -> int:
        """Devices invited to a round before any drop-out was measured: ceil(over_select * cohort).

        At quorum 1 the whole cohort is needed by name, so nobody is invited beyond it: which
        updates count then does not depend on who was faster (docs/adr/0004).
        """
        if self.needed == self.cohort:
            return self.cohort
        return math.ceil(round(self.over_select * self.cohort, 9))


class Selection(Struct, frozen=True, forbid_unknown_fields=True):
    """[selection]: which of the devices that are there are asked."""

    policy: Literal["random", "availability", "prioritised"] = "availability"
    min_battery: Fraction = 0.3
    require_charging: bool = False
    allow_metered: bool = False
    min_separation: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    participation_floor: Fraction = 0.5
    adapt_over_select: bool = True
    check_ins_per_s_max: Annotated[float, Meta(gt=0.0, le=100_000.0)] = 20.0


class Aggregation(Struct, frozen=True, forbid_unknown_fields=True):
    """[aggregation]: how updates become a model, and who is kept out of it."""

    strategy: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    robust: Literal[
        "none", "norm_clip", "median", "trimmed_mean", "multi_krum", "geometric_median"
    ] = "norm_clip"
    weight_cap: Annotated[int, Meta(ge=1, le=limits.WEIGHT_MAX)] = 1000
    weight_ratio_max: Annotated[float, Meta(ge=0.0, le=1e6)] = 2.0
    clip_quantile: Share = 0.5
    attackers_max: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.3
    server_learning_rate: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    server_momentum: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    beta2: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    tau: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    strikes_max: Annotated[int, Meta(ge=0, le=1_000)] = 3
    quarantine_s: Annotated[float, Meta(gt=0.0, le=31_536_000.0)] = 86_400.0

    @property
    def mu(self) -> float:
        """FedProx's mu, as devices get it."""
        return self.proximal_mu or _OWN[self.strategy].get("proximal_mu", 0.0)

    def plan(self) -> AggregationPlan:
        """What a round is opened with: zeros replaced by what the strategy uses by itself."""
        own = _OWN[self.strategy]
        robust = self.robust != "none"
        return AggregationPlan(
            strategy=self.strategy,
            robust=self.robust,
            server_learning_rate=self.server_learning_rate or own["server_learning_rate"],
            server_momentum=self.server_momentum or own.get("server_momentum", 0.0),
            beta2=self.beta2 or own.get("beta2", 0.0),
            tau=self.tau or own.get("tau", 0.0),
            weight_ratio_max=self.weight_ratio_max if robust else 0.0,
            attackers_max=self.attackers_max,
            clip_quantile=self.clip_quantile,
        )


# What each strategy uses where the file has 0; a key that is not here is not the strategy's.
# Reddi et al. 2021, section 5 and appendix D; Hsu et al. 2019, section 4.3.
_OWN: Final[dict[str, dict[str, float]]] = {
    "fedavg": {"server_learning_rate": 1.0},
    "fedprox": {"server_learning_rate": 1.0, "proximal_mu": 0.01},
    "fedavgm": {"server_learning_rate": 0.3, "server_momentum": 0.9},
    "fedadam": {"server_learning_rate": 0.01, "server_momentum": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedyogi": {"server_learning_rate": 0.01, "server_momentum": 0.9, "beta2": 0.99, "tau": 1e-3},
}
_BY_COORDINATE: Final = ("median", "trimmed_mean")
_DENSE: Final = "eden1"
_STRATEGY_KEYS: Final = ("server_momentum", "beta2", "tau")


class Uplink(Struct, frozen=True, forbid_unknown_fields=True):
    """[uplink]: how updates become bytes."""

    codec: Codec = _AUTO
    payload_bytes_max: Annotated[int, Meta(ge=0, le=limits.TRANSFER_BYTES_MAX)] = 0

    def spec_for(self, cohort: int) -> str:
        """What an invitation to a round of `cohort` updates names as its codec."""
        if self.codec != _AUTO and not self.payload_bytes_max:
            return self.codec
        rule = AutoRule.for_cohort(cohort, payload_bytes_max=self.payload_bytes_max)
        return rule.with_setting(self.codec).spec


class Downlink(Struct, frozen=True, forbid_unknown_fields=True):
    """[downlink]: how the change from one version to the next becomes bytes."""

    codec: Codec = _AUTO


class Privacy(Struct, frozen=True, forbid_unknown_fields=True):
    """[privacy]: what the coordinator may learn of one device."""

    mode: Literal["none"] = "none"
    unit: Literal["device"] = "device"
    clip_norm: Annotated[float, Meta(gt=0.0, le=1e12)] = 1.0
    noise_multiplier: Annotated[float, Meta(ge=0.0)] = 0.0
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-5
    epsilon_budget: Annotated[float, Meta(ge=0.0)] = 0.0
    secure_aggregation: Literal[False] = False


class Broker(Struct, frozen=True, forbid_unknown_fields=True):
    """[broker]: where messages go; "embedded" starts one on loopback."""

    url: str = "embedded"
    packet_bytes_max: Annotated[int, Meta(ge=limits.PACKET_BYTES_MIN, le=268_435_456)] = (
        limits.PACKET_BYTES_MAX_DEFAULT
    )


class Retention(Struct, frozen=True, forbid_unknown_fields=True):
    """[retention]: what the state directory keeps of what is over."""

    versions: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    ledger_days: Annotated[float, Meta(ge=0.0, le=36_500.0)] = 0.0


class Fleet(Struct, frozen=True, forbid_unknown_fields=True):
    """[fleet]: what emulated devices are like; read by `potluck fleet` alone."""

    mix: str | dict[str, float] = "phones-and-gateways"
    partition: Annotated[
        str, Meta(pattern=r"^(iid|blocks|dirichlet:[0-9.]+|blocks\+dirichlet:[0-9.]+)$")
    ] = "dirichlet:0.5"
    start: str = "2026-01-05T20:00:00Z"
    check_in_s: Annotated[float, Meta(ge=20.0, le=limits.LEASE_S_MAX)] = 120.0


class FederationConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole federation file."""

    federation: Federation = Federation()
    rounds: Rounds = Rounds()
    selection: Selection = Selection()
    aggregation: Aggregation = Aggregation()
    uplink: Uplink = Uplink()
    downlink: Downlink = Downlink()
    privacy: Privacy = Privacy()
    broker: Broker = Broker()
    retention: Retention = Retention()
    fleet: Fleet = Fleet()

    def uplink_spec(self, cohort: int) -> str:
        """What an invitation to a round of `cohort` updates names as its codec.

        Sparse updates are right on average and 0 in most places, and so is the middle one of many:
        rules by coordinate get what says a little of every value (docs/adr/0014).
        """
        by_coordinate = self.aggregation.robust in _BY_COORDINATE
        bounded = self.uplink.payload_bytes_max
        if by_coordinate and self.uplink.codec == _AUTO and not bounded:
            return _DENSE
        return self.uplink.spec_for(cohort)

    def plan(self, seed: int) -> Plan:
        """What devices are asked to do in a round with this public seed."""
        return Plan(
            local_epochs=self.rounds.local_epochs,
            batch=self.rounds.batch,
            learning_rate=self.rounds.learning_rate,
            seed=seed,
            proximal_mu=self.aggregation.mu,
        )


def load_config(path: Path) -> FederationConfig:
    """Read a federation file.

    Raises:
        settings.SettingsError: one line with file, line, key, and what is known instead.
    """
    text = settings.load(path)
    config = settings.convert(FederationConfig, text, path)
    if not topics.federation_name_is_valid(config.federation.name):
        line = settings.locate_line(text, ("federation", "name"))
        raise settings.SettingsError(
            f"{path}:{line}: [federation] name: {config.federation.name!r} must be 1 to 64"
            " lower-case letters, digits, dots, dashes or underscores, and not 'enrol'"
        )
    _check_codecs(config, text, path)
    _check_strategy(config, text, path)
    if config.privacy.noise_multiplier > 0.0:
        line = settings.locate_line(text, ("privacy", "noise_multiplier"))
        raise settings.SettingsError(
            f"{path}:{line}: [privacy] noise_multiplier: noise needs a privacy mode, and mode is"
            f" {config.privacy.mode!r}; write 0.0"
        )
    return config


def _check_strategy(config: FederationConfig, text: str, path: Path) -> None:
    strategy = config.aggregation.strategy
    for key in _STRATEGY_KEYS:
        if getattr(config.aggregation, key) and key not in _OWN[strategy]:
            line = settings.locate_line(text, ("aggregation", key))
            users = [name for name, own in _OWN.items() if key in own]
            raise settings.SettingsError(
                f"{path}:{line}: [aggregation] {key}: strategy {strategy!r} has none; leave it out,"
                f" or choose {' or '.join(users)}"
            )


def _check_codecs(config: FederationConfig, text: str, path: Path) -> None:
    for table, codec, check in (
        ("uplink", config.uplink.codec, check_spec),
        ("downlink", config.downlink.codec, resolve_downlink),
    ):
        try:
            check(codec)
        except LocalProtocolError as error:
            line = settings.locate_line(text, (table, "codec"))
            raise settings.SettingsError(f"{path}:{line}: [{table}] codec: {error}") from error
    uplink = config.uplink
    if uplink.payload_bytes_max and (name_of(uplink.codec) != _AUTO or uplink.codec.count(":") > 1):
        line = settings.locate_line(text, ("uplink", "payload_bytes_max"))
        raise settings.SettingsError(
            f"{path}:{line}: [uplink] payload_bytes_max: it is for codec auto or auto:ERROR, and"
            f' codec is {uplink.codec!r}; leave it out, or write codec = "auto"'
        )
