-- One row each: the store's own secret, and up to where tombstones are gone.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The one counter that every change takes its revision from.
CREATE TABLE counter (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL
) STRICT;
INSERT INTO counter (one, revision) VALUES (1, 0);

-- What lives, and tombstones (body is null) of what did.
CREATE TABLE record (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    revision   INTEGER NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body       TEXT
) STRICT;
CREATE UNIQUE INDEX record_name ON record (kind, name) WHERE body IS NOT NULL;
CREATE INDEX record_tombstone ON record (updated_at) WHERE body IS NULL;

-- Words that only one living record of a kind may have.
CREATE TABLE record_key (
    kind TEXT NOT NULL,
    word TEXT NOT NULL,
    id   TEXT NOT NULL REFERENCES record (id),
    PRIMARY KEY (kind, word)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_key_id ON record_key (id);

-- Which living record cannot do without which other.
CREATE TABLE record_need (
    id       TEXT NOT NULL REFERENCES record (id),
    needs_id TEXT NOT NULL REFERENCES record (id),
    PRIMARY KEY (id, needs_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX record_need_of ON record_need (needs_id);

-- How tokens are found and known again.
CREATE TABLE token_mark (
    id      TEXT PRIMARY KEY REFERENCES record (id),
    prefix  TEXT NOT NULL UNIQUE,
    hash    BLOB NOT NULL,
    used_at INTEGER
) STRICT, WITHOUT ROWID;

-- Requests that must happen once, with the ids of what they made.
CREATE TABLE once (
    key    TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    at     INTEGER NOT NULL,
    ids    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX once_at ON once (at);

CREATE TABLE audit (
    revision INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    verb     TEXT NOT NULL,
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    before   TEXT NOT NULL,
    after    TEXT NOT NULL
) STRICT;
