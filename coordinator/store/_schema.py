"""The tables of the coordinator's file, as the steps that made them what they are.

A step that was ever released is never changed: a file that was made by it exists somewhere. What
changes tables is another step at the end.
"""

from typing import Final

_FIRST: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY, secret BLOB NOT NULL, expires_at REAL NOT NULL, public_key BLOB
) STRICT;
CREATE TABLE devices (
    device TEXT PRIMARY KEY, public_key BLOB NOT NULL, device_class TEXT NOT NULL,
    enrolled_at REAL NOT NULL, revoked TEXT, last_check_in INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE models (
    version INTEGER PRIMARY KEY, round INTEGER NOT NULL, digest BLOB NOT NULL,
    delta BLOB NOT NULL, created_at REAL NOT NULL
) STRICT;
CREATE TABLE tensors (
    version INTEGER PRIMARY KEY, served BLOB NOT NULL, exact BLOB NOT NULL
) STRICT;
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, record BLOB NOT NULL, status TEXT NOT NULL DEFAULT 'open',
    version INTEGER, opened_at REAL NOT NULL, closed_at REAL, reason TEXT,
    metrics BLOB, traffic BLOB, declined BLOB
) STRICT;
CREATE TABLE updates (
    update_id BLOB PRIMARY KEY, device TEXT NOT NULL, round INTEGER NOT NULL,
    base_version INTEGER NOT NULL, num_examples INTEGER NOT NULL, weight INTEGER NOT NULL,
    bytes INTEGER NOT NULL, digest BLOB NOT NULL, metrics BLOB NOT NULL,
    receipted_at REAL, settled_at REAL, counted INTEGER, reason TEXT
) STRICT;
CREATE INDEX updates_by_round ON updates (round, settled_at);
CREATE TABLE spool (update_id BLOB PRIMARY KEY, payload BLOB NOT NULL) STRICT;
CREATE TABLE releases (
    sequence INTEGER PRIMARY KEY, alias TEXT NOT NULL, version INTEGER NOT NULL,
    digest BLOB NOT NULL, released_at REAL NOT NULL
) STRICT;
CREATE TABLE privacy (
    sequence INTEGER PRIMARY KEY, round INTEGER NOT NULL, epsilon REAL NOT NULL,
    delta REAL NOT NULL, spent_at REAL NOT NULL
) STRICT;
CREATE TABLE incidents (
    device TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, last_detail TEXT NOT NULL,
    PRIMARY KEY (device, reason)
) STRICT;
"""

# Where versions come from and who released them. What an older file has was released by the end of
# a run alone, and every version was made from the one before it. The index answers what is counted
# over all updates, without reading them.
_SECOND_REG: Final = """
CREATE TABLE lineage (
    version INTEGER PRIMARY KEY, parent INTEGER, counted INTEGER NOT NULL, weight INTEGER NOT NULL,
    bytes INTEGER NOT NULL, metrics BLOB
) STRICT;
INSERT INTO lineage
    SELECT m.version, NULLIF(m.version, 0) - 1,
        (SELECT COUNT(*) FROM updates u WHERE u.round = m.round AND u.counted = 1),
        (SELECT COALESCE(SUM(u.weight), 0) FROM updates u
            WHERE u.round = m.round AND u.counted = 1),
        (SELECT COALESCE(MAX(LENGTH(served)), 0) FROM tensors),
        (SELECT r.metrics FROM rounds r WHERE r.version = m.version)
    FROM models m;
CREATE INDEX updates_by_outcome ON updates (counted, reason, device, weight, bytes);
ALTER TABLE releases ADD COLUMN actor TEXT NOT NULL DEFAULT 'run_over';
ALTER TABLE releases ADD COLUMN action TEXT NOT NULL DEFAULT 'promote';
ALTER TABLE releases ADD COLUMN from_version INTEGER;
"""

_SECOND_AGG: Final = """
CREATE TABLE strategy_memory (version INTEGER PRIMARY KEY, memory BLOB NOT NULL) STRICT;
CREATE TABLE standing (
    device TEXT PRIMARY KEY, strikes REAL NOT NULL, quarantined_until REAL,
    probation INTEGER NOT NULL, quarantines INTEGER NOT NULL
) STRICT;
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY, device TEXT NOT NULL, round INTEGER NOT NULL,
    what TEXT NOT NULL, reason TEXT NOT NULL, score REAL, strikes REAL NOT NULL, at REAL NOT NULL
) STRICT;
CREATE INDEX audit_by_device ON audit (device);
"""

# What is left of a round whose lines of the ledger have been deleted.
_SECOND_DUR: Final = """
ALTER TABLE rounds ADD COLUMN totals BLOB;
"""

# `collected_in` is the round whose buffer an update came to; of a synchronous one it is its own.
_SECOND_ASY: Final = """
ALTER TABLE updates ADD COLUMN collected_in INTEGER NOT NULL DEFAULT 0;
UPDATE updates SET collected_in = round;
CREATE INDEX updates_by_collection ON updates (collected_in, settled_at);
ALTER TABLE rounds ADD COLUMN metrics_source TEXT;
CREATE TABLE invitations (
    round INTEGER NOT NULL, device TEXT NOT NULL, check_in INTEGER NOT NULL,
    invited_at REAL NOT NULL, deadline_at REAL NOT NULL, ended TEXT, PRIMARY KEY (round, device)
) STRICT;
CREATE TABLE evaluations (
    version INTEGER NOT NULL, device TEXT NOT NULL, loss REAL NOT NULL, accuracy REAL,
    num_examples INTEGER NOT NULL, evaluated_at REAL NOT NULL, PRIMARY KEY (version, device)
) STRICT;
"""

# A file from before knows who delivered, and no longer who was invited and stayed silent.
_SECOND_SEL: Final = """
CREATE TABLE participation (
    device TEXT PRIMARY KEY, invited INTEGER NOT NULL, delivered INTEGER NOT NULL,
    counted INTEGER NOT NULL, declined INTEGER NOT NULL, vanished INTEGER NOT NULL,
    duration_s REAL NOT NULL, last_round INTEGER NOT NULL, utility REAL NOT NULL,
    utility_round INTEGER NOT NULL
) STRICT;
INSERT INTO participation
    SELECT device, COUNT(*), COUNT(receipted_at), COALESCE(SUM(counted), 0), 0, 0, 0.0,
    MAX(round), 0.0, 0 FROM updates GROUP BY device;
"""

# What devices say against a release.
_THIRD_VETOES: Final = """
CREATE TABLE vetoes (
    version INTEGER NOT NULL, device TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    metrics BLOB NOT NULL, vetoed_at REAL NOT NULL, PRIMARY KEY (version, device)
) STRICT;
"""

MIGRATIONS: Final = (
    _FIRST,
    _SECOND_REG + _SECOND_AGG + _SECOND_DUR + _SECOND_ASY + _SECOND_SEL,
    _THIRD_VETOES,
)
SCHEMA_VERSION: Final = len(MIGRATIONS)
