-- The queries that a cleanup run marked as abandoned, the first few hundred of them: what is known of each.
ALTER TABLE monitor_janitor_passes ADD COLUMN abandoned_queries jsonb NOT NULL DEFAULT '[]';
