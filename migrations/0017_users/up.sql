-- Named users with a token each. src/access/users.rs defines the hash and the proof.
CREATE TABLE monitor_users (
    name text PRIMARY KEY,
    role text NOT NULL,
    -- Public part of the token.
    token_id text NOT NULL UNIQUE,
    -- Hash of the secret part (PHC format).
    token_hash text NOT NULL,
    -- Unix seconds, as is the expiry.
    created bigint NOT NULL,
    expires bigint NOT NULL,
    -- Last use, to a few minutes; null if unused.
    used bigint,
    -- Proof that a holder of MONITOR_SECRET_KEY wrote the row.
    proof bytea NOT NULL
);
-- Token of the named user whose session it is; null for a shared token.
ALTER TABLE monitor_sessions ADD COLUMN token_id text;
