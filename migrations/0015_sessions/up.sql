-- Sessions of browsers that logged in, so that each monitor with this database knows them: the digest of what the cookie
-- holds, whose it is, and a proof by which a monitor with the same tokens knows that a monitor wrote the row.
CREATE TABLE monitor_sessions (
    id bytea PRIMARY KEY,
    name text NOT NULL,
    role text NOT NULL,
    began bigint NOT NULL,
    used bigint NOT NULL,
    proof bytea NOT NULL
);
