//! Login by OpenID Connect: the settings, what a started login remembers, and the user and role in the claims of the
//! provider. Without I/O.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Role;
use super::policy::shortened;
use super::role::highest_role;
use super::sealing::SealingKey;
use crate::printable::{excerpt, is_hidden};

/// Maximum time between the start of a login and the provider's answer, seconds.
pub const LOGIN_WITHIN: u64 = 600;
/// Maximum length of the groups in an error message, characters.
const MOST_SHOWN: usize = 200;

/// An identity provider, and the roles of its users.
#[derive(Clone)]
pub struct Oidc {
    /// Issuer URL, below which its configuration is published.
    pub issuer: String,
    /// ID of this application at the provider.
    pub client_id: String,
    /// Secret of this application; `None` for a public client.
    pub client_secret: Option<String>,
    /// URL of this application to which the provider sends users back.
    pub redirect_url: String,
    /// Requested scopes, in addition to `openid`.
    pub scopes: Vec<String>,
    /// PEM file with additional CA certificates for the provider.
    pub authorities: Option<String>,
    /// Claim with the user name.
    pub user_claim: String,
    /// Claim with the groups.
    pub groups_claim: String,
    /// Role of each group.
    pub roles: Vec<(String, Role)>,
    /// Role of users in none of these groups; `None`: they are rejected.
    pub default_role: Option<Role>,
}

impl std::fmt::Debug for Oidc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oidc").field("issuer", &self.issuer).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// The provider authenticated a user who may not use this monitor; names the claim and the setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotPermitted(String);

impl Oidc {
    /// User name and role in the claims of the provider.
    ///
    /// # Errors
    /// If there is no name, or no role for the user.
    pub fn user(&self, claims: &Map<String, Value>) -> Result<(String, Role), NotPermitted> {
        let name = claim(claims, &self.user_claim).and_then(Value::as_str).map(shortened);
        if let Some(name) = name.as_ref().filter(|name| imitates(name)) {
            return Err(NotPermitted(format!(
                "the identity provider sent {name:?} as {} (MONITOR_OIDC_USER_CLAIM): expected a name without parentheses and \
                 invisible characters, and not that of a token or of the monitor itself",
                self.user_claim
            )));
        }
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            let mut known: Vec<&str> = claims.keys().map(String::as_str).collect();
            known.sort_unstable();
            NotPermitted(format!(
                "the identity provider sent no text as {} (MONITOR_OIDC_USER_CLAIM); it sent {}",
                self.user_claim,
                excerpt(&known.join(", "), MOST_SHOWN)
            ))
        })?;
        let is_unverified = claims.get("email_verified").is_some_and(|said| *said == false || *said == "false");
        if self.user_claim == "email" && is_unverified {
            return Err(NotPermitted(format!(
                "the identity provider has not verified the address {name}, which anyone may have entered: it must verify \
                 it, or MONITOR_OIDC_USER_CLAIM must name another claim"
            )));
        }
        let groups = self.groups(claims);
        let role = highest_role(groups.iter().copied(), &self.roles).or(self.default_role);
        let role = role.ok_or_else(|| {
            let held = match groups.as_slice() {
                [] => "sent no groups".to_owned(),
                groups => format!("sent {}", excerpt(&groups.join(", "), MOST_SHOWN)),
            };
            NotPermitted(format!(
                "{name} has no role: MONITOR_OIDC_ROLES lists none of the user's groups; the identity provider {held} in the \
                 claim {} (MONITOR_OIDC_GROUPS_CLAIM)",
                self.groups_claim
            ))
        })?;
        Ok((name, role))
    }

    /// Whether the claims contain both the user name and the groups.
    #[must_use]
    pub fn is_complete(&self, claims: &Map<String, Value>) -> bool {
        [&self.user_claim, &self.groups_claim].iter().all(|name| claim(claims, name).is_some())
    }

    fn groups<'a>(&self, claims: &'a Map<String, Value>) -> Vec<&'a str> {
        match claim(claims, &self.groups_claim) {
            Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(group)) => vec![group],
            // Zitadel: the names are the keys.
            Some(Value::Object(groups)) => {
                let held = groups.iter().filter(|(_, value)| !value.is_null() && **value != false);
                held.map(|(name, _)| name.as_str()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The claim with this name, or with this path: `realm_access.roles` of Keycloak. Names may contain dots themselves.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null()).or_else(|| {
        let mut dots = name.match_indices('.');
        dots.find_map(|(dot, _)| claim(claims.get(name.get(..dot)?)?.as_object()?, name.get(dot + 1..)?))
    })
}

/// Whether a name would be taken for that of another kind of caller in the audit log: `bo (admin token)`, `SIGHUP`.
fn imitates(name: &str) -> bool {
    let is_reserved = |reserved: &str| name.eq_ignore_ascii_case(reserved);
    name.contains(|c: char| "()".contains(c) || is_hidden(c))
        || name.to_ascii_lowercase().ends_with(" token")
        || ["SIGHUP", "rules file", "anybody"].into_iter().any(is_reserved)
}

/// A login that was started here; the browser keeps it in a cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedLogin {
    /// Value that the provider returns in the address.
    pub state: String,
    /// Value that the provider returns in the ID token.
    pub nonce: String,
    /// PKCE code verifier.
    pub verifier: String,
    /// Path to continue with after the login.
    pub next: String,
    /// When it was started, Unix seconds.
    pub started: u64,
}

impl StartedLogin {
    /// Value of the cookie.
    #[must_use]
    pub fn seal(&self, key: &SealingKey) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(key.seal(&text)))
    }

    /// The login in a cookie, if this monitor, or one with the same secrets, started it recently.
    #[must_use]
    pub fn open(cookie: &str, key: &SealingKey, now: u64) -> Option<Self> {
        let (text, proof) = cookie.split_once('.')?;
        let text = URL_SAFE_NO_PAD.decode(text).ok()?;
        let is_ours = key.is_sealed(&text, &URL_SAFE_NO_PAD.decode(proof).ok()?);
        let login: Self = serde_json::from_slice(&text).ok().filter(|_| is_ours)?;
        // The clock of another monitor may be a little ahead.
        let age = now.saturating_sub(login.started);
        (age <= LOGIN_WITHIN).then_some(login)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn provider(groups_claim: &str, default_role: Option<Role>) -> Oidc {
        Oidc {
            issuer: "https://id.example".to_owned(),
            client_id: "monitor".to_owned(),
            client_secret: None,
            redirect_url: String::new(),
            scopes: Vec::new(),
            authorities: None,
            user_claim: "email".to_owned(),
            groups_claim: groups_claim.to_owned(),
            roles: vec![("sre".to_owned(), Role::Admin), ("ops".to_owned(), Role::Operator)],
            default_role,
        }
    }

    fn user(provider: &Oidc, claims: Value) -> Result<(String, Role), String> {
        let Value::Object(claims) = claims else { panic!("not an object") };
        provider.user(&claims).map_err(|error| error.to_string())
    }

    #[test]
    fn roles_come_from_the_groups_that_a_setting_lists() {
        let keycloak = json!({"email": "ann@x", "realm_access": {"roles": ["ops", "dev", "sre"]}});
        assert_eq!(user(&provider("realm_access.roles", None), keycloak).unwrap().1, Role::Admin);
        let auth0 = json!({"email": "ann@x", "https://x.example/groups": ["ops"]});
        assert_eq!(user(&provider("https://x.example/groups", None), auth0).unwrap().1, Role::Operator);
        let one = json!({"email": " ann@x ", "groups": "ops"});
        assert_eq!(user(&provider("groups", None), one), Ok(("ann@x".to_owned(), Role::Operator)));
        let zitadel = json!({"email": "ann@x", "urn:roles": {"sre": {"1": "x.example"}}});
        assert_eq!(user(&provider("urn:roles", None), zitadel).unwrap().1, Role::Admin);
        let flags = json!({"email": "ann@x", "groups": {"sre": false, "ops": true, "dev": null}});
        assert_eq!(user(&provider("groups", None), flags).unwrap().1, Role::Operator);
        let dotted = json!({"email": "ann@x", "resource_access": {"fleet.example": {"roles": ["sre"]}}});
        assert_eq!(user(&provider("resource_access.fleet.example.roles", None), dotted).unwrap().1, Role::Admin);
        let null = json!({"email": "ann@x", "groups": null});
        assert!(!provider("groups", None).is_complete(null.as_object().unwrap()));
        let none = json!({"email": "ann@x"});
        assert_eq!(user(&provider("groups", Some(Role::Viewer)), none).unwrap().1, Role::Viewer);
    }

    #[test]
    fn a_name_cannot_be_taken_for_another_kind_of_caller() {
        for name in ["bo (admin token)", "admin token", "sighup", "rules file", "ann\u{202e}x", "ann\nx", "ann\0"] {
            let why = user(&provider("groups", None), json!({"email": name, "groups": ["sre"]})).unwrap_err();
            assert!(why.contains("MONITOR_OIDC_USER_CLAIM") && why.contains("without parentheses"), "{why}");
        }
        assert!(user(&provider("groups", None), json!({"email": "Zoë Müller", "groups": ["sre"]})).is_ok());
    }

    #[test]
    fn a_group_is_no_role_by_its_name_and_errors_name_claim_and_setting() {
        // Any application's administrators may be in a group `admin`.
        let why = user(&provider("groups", None), json!({"email": "ann@x", "groups": ["admin", "dev"]})).unwrap_err();
        assert!(why.contains("sent admin, dev in the claim groups") && why.contains("MONITOR_OIDC_ROLES"), "{why}");
        for odd in [json!(7), json!([{"name": "sre"}]), json!(null)] {
            let why = user(&provider("groups", None), json!({"email": "ann@x", "groups": odd})).unwrap_err();
            assert!(why.contains("sent no groups"), "{why}");
        }
        let unverified = json!({"email": "ann@x", "email_verified": false, "groups": ["sre"]});
        let as_text = json!({"email": "ann@x", "email_verified": "false", "groups": ["sre"]});
        assert!(user(&provider("groups", None), as_text).is_err());
        let why = user(&provider("groups", None), unverified).unwrap_err();
        assert!(why.contains("has not verified the address ann@x"), "{why}");
        let why = user(&provider("groups", None), json!({"sub": "1", "groups": ["sre"]})).unwrap_err();
        assert!(why.contains("MONITOR_OIDC_USER_CLAIM") && why.ends_with("sent groups, sub"), "{why}");
    }

    #[test]
    fn a_started_login_is_accepted_for_ten_minutes_and_only_as_it_was_sealed() {
        let (key, other) = (SealingKey::derive(b"a", "logins"), SealingKey::derive(b"b", "logins"));
        let text = || "x".to_owned();
        let login = StartedLogin { state: text(), nonce: text(), verifier: text(), next: text(), started: 1000 };
        let cookie = login.seal(&key);
        assert_eq!(StartedLogin::open(&cookie, &key, 1000 + LOGIN_WITHIN), Some(login));
        assert_eq!(StartedLogin::open(&cookie, &key, 1001 + LOGIN_WITHIN), None);
        assert_eq!(StartedLogin::open(&cookie, &other, 1000), None);
        for broken in ["", ".", "a.b", &cookie.replace('.', ""), &format!("e{cookie}")] {
            assert_eq!(StartedLogin::open(broken, &key, 1000), None, "{broken}");
        }
    }
}
