-- The store itself, one row: the version of this schema, a secret of its own, the one counter that
-- every change takes its revision from, and up to where tombstones are gone. Who changes anything
-- locks this row first, so that changes happen one after the other, from however many processes.
CREATE TABLE store (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    version   integer NOT NULL,
    secret    bytea   NOT NULL,
    revision  bigint  NOT NULL DEFAULT 0,
    compacted bigint  NOT NULL DEFAULT 0
);

-- What lives, and tombstones (body is null) of what did. Names sort by their bytes, as everywhere.
CREATE TABLE record (
    id         text PRIMARY KEY,
    kind       text NOT NULL,
    name       text COLLATE "C" NOT NULL,
    revision   bigint NOT NULL UNIQUE,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    body       text
);
CREATE UNIQUE INDEX record_name ON record (kind, name) WHERE body IS NOT NULL;
CREATE INDEX record_tombstone ON record (updated_at) WHERE body IS NULL;

-- Words that only one living record of a kind may have.
CREATE TABLE record_key (
    kind text NOT NULL,
    word text NOT NULL,
    id   text NOT NULL REFERENCES record (id),
    PRIMARY KEY (kind, word)
);
CREATE INDEX record_key_id ON record_key (id);

-- Which living record cannot do without which other.
CREATE TABLE record_need (
    id       text NOT NULL REFERENCES record (id),
    needs_id text NOT NULL REFERENCES record (id),
    PRIMARY KEY (id, needs_id)
);
CREATE INDEX record_need_of ON record_need (needs_id);

-- How tokens are found and known again.
CREATE TABLE token_mark (
    id      text PRIMARY KEY REFERENCES record (id),
    prefix  text NOT NULL UNIQUE,
    hash    bytea NOT NULL,
    used_at bigint
);

-- Requests that must happen once, with the ids of what they made.
CREATE TABLE once (
    key    text PRIMARY KEY,
    digest text NOT NULL,
    at     bigint NOT NULL,
    ids    text[] NOT NULL
);
CREATE INDEX once_at ON once (at);

CREATE TABLE audit (
    revision bigint PRIMARY KEY,
    at       bigint NOT NULL,
    actor    text NOT NULL,
    verb     text NOT NULL,
    kind     text NOT NULL,
    name     text NOT NULL,
    before   text NOT NULL,
    after    text NOT NULL
);
