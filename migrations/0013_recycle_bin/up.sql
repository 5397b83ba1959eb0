-- What operators dropped from streams, for thirty days: from here it can be put back.
CREATE TABLE monitor_recycle_bin (
    id bigserial PRIMARY KEY,
    -- What was dropped together.
    batch uuid NOT NULL,
    -- Names are bytes.
    stream bytea NOT NULL,
    -- The key it lay under: the stream, or its dead letters.
    home bytea NOT NULL,
    -- NULL: it was among the dead letters, which no group reads.
    in_group bytea,
    was text NOT NULL,
    entry text NOT NULL,
    owner bytea,
    deliveries bigint NOT NULL,
    -- Each name and value: its length in four bytes, then itself.
    payload bytea NOT NULL,
    -- pending: written down, what Redis did is not settled; binned: taken out of its stream;
    -- void: it stayed there; restored: put back.
    state text NOT NULL,
    who text NOT NULL,
    why text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    restored_as text,
    restored_by text,
    restored_at timestamptz
);
CREATE INDEX monitor_recycle_bin_batch ON monitor_recycle_bin (batch, id);
CREATE INDEX monitor_recycle_bin_stream ON monitor_recycle_bin (md5(stream), id);
CREATE INDEX monitor_recycle_bin_at ON monitor_recycle_bin (at);
CREATE INDEX monitor_recycle_bin_pending ON monitor_recycle_bin (id) WHERE state = 'pending';

-- What previews chose, until it is applied or a quarter of an hour old.
CREATE TABLE monitor_previews (
    token uuid PRIMARY KEY,
    made timestamptz NOT NULL DEFAULT now(),
    who text NOT NULL,
    chosen bytea NOT NULL
);
CREATE INDEX monitor_previews_made ON monitor_previews (made);
