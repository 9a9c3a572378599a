"""Every read: a page or a record, from a connection of the request's own."""

import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator.http import _views as views
from coordinator.http._desk import Desk, NotFoundError
from coordinator.registry import ALIASES
from coordinator.signals import RoundOpened
from coordinator.store import ClassCounts, ReleaseRow, Store, UpdateRow, VersionRow
from wire import PotluckError

# The loop turns twice a second; one that has not for so long hangs.
LOOP_STALE_S: Final = 30.0
_BOOT_BITS: Final = 32


def healthz(desk: Desk) -> views.Health:
    """Whether the coordinator's loop turns."""
    age_s = time.monotonic() - desk.status().steady_s
    reasons = [f"the loop has not turned for {age_s:.0f} s"] if age_s > LOOP_STALE_S else []
    return views.Health("failing" if reasons else "ok", reasons)


def readyz(desk: Desk) -> views.Health:
    """Whether rounds can go on: the loop turns, the broker is there, the store can be read."""
    reasons = healthz(desk).reasons
    if not desk.status().link_up:
        reasons.append("the broker is not there")
    try:
        with desk.reading() as store:
            store.last_round()
    except PotluckError as error:
        reasons.append(str(error))
    return views.Health("failing" if reasons else "ok", reasons)


def federation(desk: Desk) -> views.Federation:
    """What the federation's file says, and how the coordinator is."""
    from importlib.metadata import version  # noqa: PLC0415 - reads files, which no other route needs

    status = desk.status()
    current = status.round
    with desk.reading() as store:
        latest = store.latest_version()
        row = None if latest is None else store.version(latest)
        devices = Counter[bool]()
        for count in store.devices_by_class():
            devices[bool(count["revoked"])] += count["count"]
        state = views.State(
            at=status.at_s,
            link_up=status.link_up,
            paused=status.paused,
            finished=status.finished,
            round=None
            if current is None
            else views.OpenRound(
                number=current.round,
                phase=current.phase,
                opened_at=current.opened_at_s,
                deadline_at=current.deadline_at_s,
                invited=current.invited,
                cohort=current.cohort,
                needed=current.needed,
                accepted=current.accepted,
                stored=current.stored,
            ),
            last_round=store.last_round(),
            version=latest,
            digest=None if row is None else row.digest.hex(),
            aliases=desk.registry(store).aliases(),
            devices=devices[False],
            revoked=devices[True],
            leases=sum(lease.until_s > status.at_s for lease in status.leases.values()),
        )
    return views.Federation(
        name=desk.config.federation.name,
        public_key=desk.public_key.hex(),
        broker=desk.broker,
        potluck=version("potluck"),
        config=desk.config,
        state=state,
    )


# -- rounds and updates --------------------------------------------------------------------------


def rounds(desk: Desk, query: views.ByNumber) -> views.Page[views.Round]:
    """Rounds, in order."""
    with desk.reading() as store:
        rows = store.page_of_rounds(query.after or 0, query.limit)
        items = _rounds(store, rows)
    return views.Page(items, str(items[-1].number) if len(items) == query.limit else None)


def one_round(desk: Desk, number: int) -> views.RoundDetail:
    """One round, with its devices."""
    with desk.reading() as store:
        rows = store.page_of_rounds(number - 1, 1)
        if not rows or rows[0]["round"] != number:
            raise NotFoundError(
                f"round {number}: there has been none; the last is {store.last_round()}"
            )
        opened = store.round_opened(number)
        return views.RoundDetail(
            round=_rounds(store, rows)[0],
            invited=[] if opened is None else list(opened.invited),
            declined=store.declines(number),
        )


def _rounds(store: Store, rows: list[Any]) -> list[views.Round]:
    if not rows:
        return []
    counted: Counter[int] = Counter()
    still_open: Counter[int] = Counter()
    lost: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for line in store.settlements(rows[0]["round"], rows[-1]["round"]):
        if line["counted"] is None:
            still_open[line["round"]] += line["count"]
        elif line["counted"]:
            counted[line["round"]] += line["count"]
        else:
            lost[line["round"]][line["reason"] or ""] = line["count"]
    later = store.invitations(rows[0]["round"], rows[-1]["round"])
    made = []
    for row in rows:
        number = row["round"]
        opened = msgspec.msgpack.decode(row["record"], type=RoundOpened)
        traffic = row["traffic"]
        sent, received = (
            (None, None)
            if traffic is None
            else msgspec.msgpack.decode(traffic, type=tuple[int, int])
        )
        made.append(
            views.Round(
                number=number,
                status=row["status"],
                opened_at=row["opened_at"],
                deadline_at=opened.deadline_at_s,
                closed_at=row["closed_at"],
                reason=row["reason"],
                base_version=opened.base_version,
                version=row["version"],
                codec=opened.codec,
                cohort=opened.cohort,
                needed=opened.needed,
                invited=len(opened.invited) + later.get(number, 0),
                counted=counted[number],
                open=still_open[number],
                not_counted=lost[number],
                declined=dict(Counter(store.declines(number).values())),
                metrics={}
                if row["metrics"] is None
                else msgspec.msgpack.decode(row["metrics"], type=dict[str, float]),
                sent_bytes=sent,
                received_bytes=received,
            )
        )
    return made


def updates(desk: Desk, query: views.WhichUpdates) -> views.Page[views.Update]:
    """The ledger, in the order in which its lines were written."""
    with desk.reading() as store:
        page = store.page_of_updates(
            query.after or 0, query.limit, round_number=query.round, device=query.device
        )
    full = len(page.rows) == query.limit
    return views.Page([_update(row) for row in page.rows], str(page.last) if full else None)


def _update(row: UpdateRow) -> views.Update:
    return views.Update(
        update_id=row.update_id.hex(),
        device=row.device,
        round=row.round,
        base_version=row.base_version,
        num_examples=row.num_examples,
        weight=row.weight,
        bytes=row.payload_bytes,
        digest=row.digest.hex(),
        receipted_at=row.receipted_at,
        settled=None if row.counted is None else "counted" if row.counted else "not_counted",
        settled_at=row.settled_at,
        reason=row.reason,
    )


# -- devices -------------------------------------------------------------------------------------


def devices(desk: Desk, query: views.ByName) -> views.Page[views.Device]:
    """Devices in order of their names, revoked ones too."""
    status = desk.status()
    with desk.reading() as store:
        rows = store.page_of_devices(query.after or "", query.limit)
        incidents: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for line in store.incidents_of([row["device"] for row in rows]):
            incidents[line["device"]][line["reason"]] = line["count"]
    items = []
    for row in rows:
        lease = status.leases.get(row["device"])
        items.append(
            views.Device(
                device=row["device"],
                device_class=row["device_class"],
                enrolled_at=row["enrolled_at"],
                revoked=row["revoked"],
                check_in=row["last_check_in"],
                boot=row["last_check_in"] >> _BOOT_BITS,
                lease_until=lease.until_s if lease and lease.until_s > status.at_s else None,
                incidents=incidents[row["device"]],
            )
        )
    return views.Page(items, items[-1].device if len(items) == query.limit else None)


def incidents(desk: Desk, query: views.ByName) -> views.Page[views.Incident]:
    """Errors by device and reason; those of the last five seconds may still be missing."""
    device, _, reason = (query.after or "").partition(" ")
    with desk.reading() as store:
        rows = store.page_of_incidents((device, reason), query.limit)
    items = [views.Incident(**row) for row in rows]
    last = f"{items[-1].device} {items[-1].reason}" if len(items) == query.limit else None
    return views.Page(items, last)


def participation(desk: Desk) -> views.Classes:
    """How much each class of devices took part."""

    def look() -> list[ClassCounts]:
        with desk.reading() as store:
            return store.counts_by_class()

    counts = desk.classes.get(look)
    all_devices = sum(count.devices for count in counts) or 1
    all_counted = sum(count.counted for count in counts) or 1
    return views.Classes(
        [
            views.Participation(
                device_class=count.device_class,
                devices=count.devices,
                took_part=count.took_part,
                counted=count.counted,
                not_counted=count.not_counted,
                weight=count.weight,
                share_of_devices=count.devices / all_devices,
                share_of_counted=count.counted / all_counted,
            )
            for count in counts
        ]
    )


def audit(desk: Desk, query: views.ByNumber) -> views.Page[views.Audit]:
    """The audit trail, the oldest line first."""
    with desk.reading() as store:
        rows = store.page_of_audit(query.after or 0, query.limit)
    items = [
        views.Audit(
            line=row["line"],
            fields={
                name: row[name].hex() if isinstance(row[name], bytes) else row[name]
                for name in row.keys()  # noqa: SIM118 - a row of SQLite iterates over its values
                if name != "line"
            },
        )
        for row in rows
    ]
    return views.Page(items, str(items[-1].line) if len(items) == query.limit else None)


# -- models --------------------------------------------------------------------------------------


def models(desk: Desk, query: views.ByNumber) -> views.Page[views.Version]:
    """Versions, in order; with `after` those above it."""
    after = -1 if query.after is None else query.after
    with desk.reading() as store:
        registry = desk.registry(store)
        rows = store.versions(after=after, limit=query.limit)
        aliases, vetoes = registry.aliases(), store.vetoes_by_version()
        items = [
            _version(row, aliases, vetoes.get(row.version, {}), kept=registry.is_kept(row))
            for row in rows
        ]
    return views.Page(items, str(items[-1].version) if len(items) == query.limit else None)


def model(desk: Desk, version: int) -> views.Version:
    """One version."""
    with desk.reading() as store:
        registry = desk.registry(store)
        row = registry.version(version)
        vetoes = store.vetoes_by_version().get(version, {})
        return _version(row, registry.aliases(), vetoes, kept=registry.is_kept(row))


def _version(
    row: VersionRow, aliases: dict[str, int], vetoes: dict[str, int], *, kept: bool
) -> views.Version:
    return views.Version(
        version=row.version,
        round=row.round,
        digest=row.digest.hex(),
        parent=row.parent,
        created_at=row.created_at,
        counted=row.counted,
        weight=row.weight,
        bytes=row.model_bytes,
        delta_bytes=row.delta_bytes,
        metrics=row.metrics,
        aliases=[alias for alias in ALIASES if aliases.get(alias) == row.version],
        kept=kept,
        vetoes=vetoes,
    )


def model_file(desk: Desk, version: int) -> tuple[Path, str]:
    """A version's file, checked against its digest, and that digest."""
    with desk.reading() as store:
        registry = desk.registry(store)
        row = registry.version(version)
        return registry.export(version), row.digest.hex()


def releases(desk: Desk, query: views.ByNumber) -> views.Page[views.Release]:
    """Every move of an alias, the oldest first."""
    with desk.reading() as store:
        rows = store.releases(after=query.after or 0, limit=query.limit)
    items = [release(row) for row in rows]
    return views.Page(items, str(items[-1].sequence) if len(items) == query.limit else None)


def release(row: ReleaseRow) -> views.Release:
    """One move of an alias."""
    return views.Release(
        sequence=row.sequence,
        alias=row.alias,
        version=row.version,
        digest=row.digest.hex(),
        released_at=row.released_at,
        actor=row.actor,
        action="rollback" if row.action == "rollback" else "promote",
        from_version=row.from_version,
    )
