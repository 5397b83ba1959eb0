-- Passes of the janitor, the newest few hundred. A pass without an end was cut off: the next one
-- goes on with it under the same id, so that what it had found already is told with the rest.
CREATE TABLE monitor_janitor_passes (
    id uuid PRIMARY KEY,
    began timestamptz NOT NULL DEFAULT now(),
    ended timestamptz,
    -- Who asked for it; nobody did when it was due.
    asked_by text,
    -- Times it was cut off and gone on with.
    resumed int NOT NULL DEFAULT 0,
    -- Queries called abandoned, by product: counted in the transaction that calls them so.
    abandoned jsonb NOT NULL DEFAULT '{}',
    callbacks_deleted bigint NOT NULL DEFAULT 0,
    -- The alert about those is written down.
    alerted timestamptz,
    outcome jsonb
);
CREATE INDEX monitor_janitor_passes_newest ON monitor_janitor_passes (began DESC);
