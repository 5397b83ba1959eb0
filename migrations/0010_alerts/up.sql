-- Alerts: where each stands, so that a restart neither forgets a pending minute nor tells twice.
CREATE TABLE monitor_alerts (
    key text PRIMARY KEY,
    rule text NOT NULL,
    subject text,
    severity text NOT NULL,
    phase text NOT NULL,
    since timestamptz NOT NULL,
    value double precision,
    acknowledged_by text,
    -- The whole of it, as the monitor goes on from it.
    state jsonb NOT NULL,
    updated timestamptz NOT NULL DEFAULT now()
);

-- Messages on their way: a row per message and channel, written with the alert's transition.
CREATE TABLE monitor_alert_outbox (
    -- The same for the same news, however often it is made or sent.
    id uuid NOT NULL,
    channel text NOT NULL,
    seq bigserial,
    created timestamptz NOT NULL,
    message jsonb NOT NULL,
    -- waiting, sent, or dead: given up.
    state text NOT NULL,
    attempts int NOT NULL,
    next_attempt timestamptz,
    -- An attempt was begun then and its end is not known: it may have arrived.
    begun timestamptz,
    -- What the channel answered last.
    answer text,
    ended timestamptz,
    PRIMARY KEY (id, channel)
);
CREATE INDEX monitor_alert_outbox_waiting ON monitor_alert_outbox (seq) WHERE state = 'waiting';
CREATE INDEX monitor_alert_outbox_newest ON monitor_alert_outbox (seq DESC);

CREATE TABLE monitor_silences (
    id uuid PRIMARY KEY,
    rule text NOT NULL,
    subject text NOT NULL,
    owner text NOT NULL,
    reason text NOT NULL,
    starts timestamptz NOT NULL,
    until timestamptz NOT NULL,
    -- Of one occurrence of the alert whose key `rule` is: quiet until it resolves.
    acknowledges boolean NOT NULL
);

-- Which monitor evaluates and sends. The epoch counts the changes; each writing transaction
-- checks it, so that one that was stopped and continued writes nothing any more.
CREATE TABLE monitor_alert_leader (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    epoch bigint NOT NULL,
    holder text NOT NULL,
    renewed timestamptz NOT NULL
);
INSERT INTO monitor_alert_leader (epoch, holder, renewed) VALUES (0, '', '-infinity');
