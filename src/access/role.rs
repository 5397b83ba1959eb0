//! Roles; each includes the permissions of the lower ones.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A role, ordered by its permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Views pages and reads the API.
    #[default]
    Viewer,
    /// Also acknowledges, silences, sends tests, reloads, retries, and reads the audit log.
    Operator,
    /// Also drops, cleans up and forgets.
    Admin,
}

impl Role {
    /// All roles, lowest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Name in settings, headers and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected viewer, operator or admin")]
pub struct NoSuchRole;

impl FromStr for Role {
    type Err = NoSuchRole;

    fn from_str(text: &str) -> Result<Self, NoSuchRole> {
        Self::ALL.into_iter().find(|role| role.as_str().eq_ignore_ascii_case(text.trim())).ok_or(NoSuchRole)
    }
}

/// Highest role that `roles` gives to one of these groups.
#[must_use]
pub fn highest_role<'a>(groups: impl IntoIterator<Item = &'a str>, roles: &[(String, Role)]) -> Option<Role> {
    let known = groups.into_iter().filter_map(|group| roles.iter().find(|(name, _)| name == group));
    known.map(|(_, role)| *role).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_include_the_permissions_of_lower_ones() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
        assert_eq!("Operator".parse(), Ok(Role::Operator));
        assert_eq!("root".parse::<Role>(), Err(NoSuchRole));
    }
}
