//! Conditions in which Postgres is reachable but refuses work, such as a full disk, as opposed to errors of a
//! statement. Used by the monitor and the worker library.

use std::fmt;

/// Reason why a reachable Postgres refuses work. `Display` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseCondition {
    /// SQLSTATE 53100.
    DiskFull,
    /// SQLSTATE 53200.
    OutOfMemory,
    /// SQLSTATE 53300.
    TooManyConnections,
    /// SQLSTATE 25006: a standby, or `default_transaction_read_only`.
    ReadOnly,
}

impl DatabaseCondition {
    /// Returns the condition of an SQLSTATE.
    #[must_use]
    pub fn from_sqlstate(code: &str) -> Option<Self> {
        match code {
            "53100" => Some(Self::DiskFull),
            "53200" => Some(Self::OutOfMemory),
            "53300" => Some(Self::TooManyConnections),
            "25006" => Some(Self::ReadOnly),
            _ => None,
        }
    }

    /// Returns the condition that an error message describes, for clients without access to the SQLSTATE. Recognizes
    /// the messages of Postgres and the condition names of PL/pgSQL.
    #[must_use]
    pub fn from_texts(message: &str, hint: Option<&str>) -> Option<Self> {
        let lower = message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|words| lower.contains(words));
        if says(&["no space left on device", "disk full", "disk_full", "disk quota exceeded", "53100"])
            || hint.is_some_and(|hint| hint.to_lowercase().contains("free disk space"))
        {
            Some(Self::DiskFull)
        } else if says(&["out of memory", "out_of_memory", "out of shared memory", "53200"]) {
            Some(Self::OutOfMemory)
        } else if says(&[
            "too many clients",
            "too many connections",
            "too_many_connections",
            "connection slots are reserved",
            "53300",
        ]) {
            Some(Self::TooManyConnections)
        } else if says(&["read-only transaction", "read_only_sql_transaction", "25006"]) {
            Some(Self::ReadOnly)
        } else {
            None
        }
    }

    /// Remedy for an operator.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::DiskFull => "Free disk space on the database server or enlarge its volume",
            Self::OutOfMemory => "Give the database server more memory, or lower work_mem or max_connections",
            Self::TooManyConnections => "Raise max_connections of the database server or close connections",
            Self::ReadOnly => {
                "Connect to the primary server and check that default_transaction_read_only is off for this role"
            }
        }
    }
}

impl fmt::Display for DatabaseCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "Postgres is out of disk space",
            Self::OutOfMemory => "Postgres is out of memory",
            Self::TooManyConnections => "Postgres has too many connections",
            Self::ReadOnly => "Postgres is read-only",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_sqlstates_of_postgres_map_to_the_condition() {
        for (message, hint, condition) in [
            ("could not extend file \"base/5/16384\": No space left on device", Some("Check free disk space."), "disk"),
            (
                "could not extend file \"base/5/16384\": wrote only 4096 of 8192 bytes at block 7",
                Some("Check free disk space."),
                "disk",
            ),
            ("disk_full", None, "disk"),
            ("out of memory", None, "memory"),
            ("sorry, too many clients already", None, "connections"),
            ("remaining connection slots are reserved for roles with the SUPERUSER attribute", None, "connections"),
            ("cannot execute INSERT in a read-only transaction", None, "read-only"),
        ] {
            let found = DatabaseCondition::from_texts(message, hint).map(|condition| condition.to_string());
            assert!(found.as_ref().is_some_and(|found| found.contains(condition)), "{message}: {found:?}");
        }
        for message in ["relation \"x\" does not exist", "index row size 6016 exceeds btree version 4 maximum 2704"] {
            assert_eq!(DatabaseCondition::from_texts(message, None), None, "{message}");
        }
        assert_eq!(DatabaseCondition::from_sqlstate("53100"), Some(DatabaseCondition::DiskFull));
        assert_eq!(DatabaseCondition::from_sqlstate("23505"), None);
    }
}
