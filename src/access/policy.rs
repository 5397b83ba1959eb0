//! Authentication modes: `MONITOR_AUTH`.

use std::net::IpAddr;

use super::Role;
use super::oidc::Oidc;
use super::role::highest_role;
use super::sealing::SealingKey;
use super::tokens::{self, BadTokens, Tokens};
use super::users::{User, UserToken};

/// Authentication mode.
#[derive(Debug, Clone)]
pub enum Policy {
    /// No authentication: every client is admin.
    Nobody {
        /// Accepted host names, in addition to those of this machine; `None`: any.
        hosts: Option<Vec<String>>,
    },
    /// A bearer token, or a session created with one.
    Token(Credentials),
    /// User name and password. Passwords are the tokens; the name is recorded in the audit log.
    Basic(Credentials),
    /// Headers of a reverse proxy.
    Proxy(Proxy),
    /// A session created at an identity provider; programs use bearer tokens.
    Oidc {
        /// What bearer tokens and sessions are verified with.
        credentials: Credentials,
        /// The identity provider.
        provider: Box<Oidc>,
    },
}

/// What requests and sessions are verified with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Shared token of each role.
    pub tokens: Tokens,
    /// Proofs of sessions.
    pub session_key: SealingKey,
    /// Proofs of started logins at an identity provider.
    pub login_key: SealingKey,
}

impl Credentials {
    /// Derives the keys. `secret` is `MONITOR_SECRET_KEY`. A changed token ends the sessions, with or without it.
    ///
    /// # Errors
    /// If a token is too short, easy to guess or used twice.
    pub fn new(tokens: &[(Role, String)], secret: Option<&str>) -> Result<Self, BadTokens> {
        let mut material = tokens::material(tokens);
        material.extend_from_slice(secret.unwrap_or_default().as_bytes());
        Ok(Self {
            tokens: Tokens::new(tokens)?,
            session_key: SealingKey::derive(&material, "sessions"),
            login_key: SealingKey::derive(&material, "logins"),
        })
    }
}

/// A proxy that authenticates users and reports them in headers.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Header with the user name.
    pub user_header: String,
    /// Header with the role, or with the groups in [`Self::roles`].
    pub role_header: String,
    /// Role of each group; empty: the header contains a role.
    pub roles: Vec<(String, Role)>,
    /// Role of users without a role or without a known group; `None`: they are rejected.
    pub default_role: Option<Role>,
}

/// Credentials of a request. Each header has all its values, as bytes: a proxy may add its own to those of the
/// client.
#[derive(Debug, Clone, Default)]
pub struct Presented<'a> {
    /// Peer address of the connection.
    pub peer: Option<IpAddr>,
    /// The peer is a trusted proxy.
    pub by_trusted_proxy: bool,
    /// `Host`.
    pub host: Vec<&'a [u8]>,
    /// `Authorization`.
    pub authorization: Vec<&'a [u8]>,
    /// Open session of the cookie.
    pub session: Option<&'a Session>,
    /// Named user whose token `authorization` has.
    pub owner: Option<&'a User>,
    /// Values of the user header of the proxy.
    pub user: Vec<&'a [u8]>,
    /// Values of the role header of the proxy.
    pub role: Vec<&'a [u8]>,
}

/// User of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Name of the user; with a shared token, what the user entered, and the token.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Token of the named user, with which the session ends; `None` for a shared token.
    pub token_id: Option<String>,
}

impl Session {
    /// Session of a named user.
    #[must_use]
    pub fn of(user: &User) -> Self {
        Self { name: user.name.clone(), role: user.role, token_id: Some(user.token_id.clone()) }
    }

    /// Session of a user whom the identity provider authenticated.
    #[must_use]
    pub fn authenticated(name: String, role: Role) -> Self {
        Self { name, role, token_id: None }
    }

    /// Session of a user who entered a shared token and a name.
    #[must_use]
    pub fn declared(name: &str, role: Role) -> Self {
        Self { name: declared(name, role), role, token_id: None }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedCaller {
    /// User name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Authenticated by a session of the login page.
    pub by_session: bool,
    /// No credentials were required.
    pub anonymous: bool,
}

impl ResolvedCaller {
    fn user(user: &User) -> Self {
        Self { name: user.name.clone(), role: user.role, by_session: false, anonymous: false }
    }
}

/// Why a request is rejected: the header, its value, and the setting to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No credentials for this authentication mode.
    NotKnown(String),
    /// Wrong credentials; counted as a failed login.
    Wrong(String),
    /// Rejected whatever the credentials.
    NotAllowed(String),
}

impl Policy {
    /// Authenticates a request.
    ///
    /// # Errors
    /// If the credentials are missing, wrong or not permitted.
    pub fn who(&self, presented: &Presented<'_>) -> Result<ResolvedCaller, Refusal> {
        match self {
            Self::Nobody { hosts } => nobody(hosts.as_deref(), &presented.host),
            Self::Token(credentials) | Self::Oidc { credentials, .. } => {
                by_token(&credentials.tokens, presented, self.mode())
            }
            Self::Basic(credentials) => by_password(&credentials.tokens, presented),
            Self::Proxy(proxy) => proxy.said(presented),
        }
    }

    /// Token of a named user that a request presents, valid or not; `None` beside a session, which takes precedence.
    #[must_use]
    pub fn user_token(&self, presented: &Presented<'_>) -> Option<UserToken> {
        if presented.session.is_some() {
            return None;
        }
        let text = match self {
            Self::Token(_) | Self::Oidc { .. } => of_scheme(presented, "bearer").ok().flatten()?.to_vec(),
            Self::Basic(_) => name_and_password(of_scheme(presented, "basic").ok().flatten()?).1,
            Self::Nobody { .. } | Self::Proxy(_) => return None,
        };
        str::from_utf8(&text).ok()?.parse().ok()
    }

    /// User name that a request claims, valid or not; failed logins are counted for it.
    #[must_use]
    pub fn account(&self, presented: &Presented<'_>) -> Option<String> {
        match self {
            Self::Basic(_) => {
                let encoded = of_scheme(presented, "basic").ok().flatten()?;
                Some(shortened(&name_and_password(encoded).0))
            }
            Self::Nobody { .. } | Self::Token(_) | Self::Proxy(_) | Self::Oidc { .. } => None,
        }
    }

    /// Name of the mode in settings and logs.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Nobody { .. } => "none",
            Self::Token(_) => "token",
            Self::Basic(_) => "basic",
            Self::Proxy(_) => "proxy",
            Self::Oidc { .. } => "oidc",
        }
    }

    /// Value of `WWW-Authenticate` in a 401.
    #[must_use]
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Token(_) | Self::Oidc { .. } => Some("Bearer realm=\"shepherd-monitor\""),
            Self::Basic(_) => Some("Basic realm=\"shepherd-monitor\", charset=\"UTF-8\""),
            Self::Nobody { .. } | Self::Proxy(_) => None,
        }
    }

    /// What the login page accepts, if there is one.
    #[must_use]
    pub fn login(&self) -> Option<&Credentials> {
        match self {
            Self::Token(credentials) | Self::Oidc { credentials, .. } => Some(credentials),
            _ => None,
        }
    }

    /// The identity provider, if users log in there.
    #[must_use]
    pub fn provider(&self) -> Option<&Oidc> {
        match self {
            Self::Oidc { provider, .. } => Some(provider.as_ref()),
            _ => None,
        }
    }

    /// Whether requests and the login page are authenticated by tokens.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        matches!(self, Self::Token(_) | Self::Basic(_) | Self::Oidc { .. })
    }
}

fn nobody(hosts: Option<&[String]>, host: &[&[u8]]) -> Result<ResolvedCaller, Refusal> {
    // Programs may omit `Host`; browsers never do.
    let is_known = |host: &&[u8]| {
        hosts.is_none_or(|hosts| {
            let name = str::from_utf8(host).map(name_of).unwrap_or_default();
            is_this_machine(name) || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
        })
    };
    // Of two values, one may be another proxy's or the client's own.
    if let Some(foreign) = host.iter().find(|known| !is_known(known) || host.len() > 1) {
        return Err(Refusal::NotAllowed(format!(
            "Host held {}: without authentication, only requests to localhost names and the host of SERVER_URL are accepted",
            quoted(foreign)
        )));
    }
    Ok(ResolvedCaller { name: "anybody".to_owned(), role: Role::Admin, by_session: false, anonymous: true })
}

/// A header value for error messages: truncated, non-text bytes replaced.
fn quoted(value: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(value).chars().take(80).collect();
    format!("{text:?}")
}

/// A host without its port, and without the dot of a fully qualified name.
fn name_of(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn is_this_machine(name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn by_token(tokens: &Tokens, presented: &Presented<'_>, mode: &str) -> Result<ResolvedCaller, Refusal> {
    // A session takes precedence: an `Authorization` header that a proxy adds must not invalidate it, and a
    // viewer must not be able to try tokens beside it, as such attempts would not be failed logins.
    if let Some(session) = presented.session {
        return Ok(ResolvedCaller {
            name: session.name.clone(),
            role: session.role,
            by_session: true,
            anonymous: false,
        });
    }
    if let Some(user) = presented.owner {
        return Ok(ResolvedCaller::user(user));
    }
    let given = of_scheme(presented, "bearer")?;
    if let Some(role) = given.and_then(|token| tokens.role_of(str::from_utf8(token).ok()?)) {
        return Ok(ResolvedCaller { name: declared("", role), role, by_session: false, anonymous: false });
    }
    match given {
        Some(token) if !is_jwt(token) => {
            Err(Refusal::Wrong("invalid credentials: Authorization held an unknown token".to_owned()))
        }
        // An ended session counts as none, so that the login page appears.
        _ => Err(not_known(presented, "Bearer with a token", mode)),
    }
}

fn by_password(tokens: &Tokens, presented: &Presented<'_>) -> Result<ResolvedCaller, Refusal> {
    let Some(encoded) = of_scheme(presented, "basic")? else {
        return Err(not_known(presented, "Basic with a token as the password", "basic"));
    };
    // Whatever name was given.
    if let Some(user) = presented.owner {
        return Ok(ResolvedCaller::user(user));
    }
    let (name, password) = name_and_password(encoded);
    let role = str::from_utf8(&password).ok().and_then(|password| tokens.role_of(password));
    let role =
        role.ok_or_else(|| Refusal::Wrong("invalid credentials: Authorization held an unknown password".to_owned()))?;
    Ok(ResolvedCaller { name: declared(&name, role), role, by_session: false, anonymous: false })
}

/// Name of a client with the shared token of a role: the given name, which is not verified, and the token. Names of users
/// have no parentheses.
fn declared(name: &str, role: Role) -> String {
    let name = shortened(name);
    if name.is_empty() { format!("{role} token") } else { format!("{name} ({role} token)") }
}

/// What a caller is counted as, whatever name it gave with a shared token.
#[must_use]
pub fn account_of(name: &str) -> &str {
    let token = name.strip_suffix(')').and_then(|name| name.rsplit_once('(')).map(|(_, token)| token);
    token.filter(|token| token.ends_with(" token")).unwrap_or(name)
}

fn name_and_password(encoded: &[u8]) -> (String, Vec<u8>) {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    let mut parts = decoded.splitn(2, |byte| *byte == b':');
    (text_of(parts.next().unwrap_or_default()), parts.next().unwrap_or_default().to_vec())
}

/// Value of the `Authorization` header with this scheme. Other schemes are ignored, as a proxy may use them itself.
/// Two different values are rejected: one may be the client's own.
fn of_scheme<'a>(presented: &Presented<'a>, scheme: &str) -> Result<Option<&'a [u8]>, Refusal> {
    let of_scheme = |value: &&'a [u8]| {
        let value: &'a [u8] = value.trim_ascii();
        let at = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
        let (given, rest) = value.split_at(at);
        given.eq_ignore_ascii_case(scheme.as_bytes()).then(|| rest.trim_ascii())
    };
    let mut values = presented.authorization.iter().filter_map(of_scheme);
    let first = values.next();
    if values.any(|other| Some(other) != first) {
        return Err(Refusal::NotAllowed(format!(
            "Authorization held several different {scheme} credentials: send one"
        )));
    }
    Ok(first)
}

/// Signed or encrypted token of an identity provider that a proxy forwards; not a failed login.
fn is_jwt(token: &[u8]) -> bool {
    token.starts_with(b"eyJ") && matches!(token.iter().filter(|byte| **byte == b'.').count(), 2 | 4)
}

fn not_known(presented: &Presented<'_>, expected: &str, mode: &str) -> Refusal {
    let scheme = |value: &[u8]| quoted(value.trim_ascii().split(|byte| *byte == b' ').next().unwrap_or_default());
    let held = match presented.authorization.as_slice() {
        [] => "there is no Authorization".to_owned(),
        // Without a space, the whole value may be a secret.
        [value] if value.trim_ascii().contains(&b' ') => format!("Authorization held {}", scheme(value)),
        [_] => "Authorization held no scheme".to_owned(),
        several => format!("none of {} Authorization headers is for this monitor", several.len()),
    };
    Refusal::NotKnown(format!("authentication required: {held}, expected {expected} (MONITOR_AUTH is {mode})"))
}

/// Text of a header: UTF-8, otherwise Latin-1 as older clients send it.
fn text_of(value: &[u8]) -> String {
    str::from_utf8(value).map_or_else(|_| value.iter().map(|byte| char::from(*byte)).collect(), str::to_owned)
}

/// Truncates a user name for display and storage.
#[must_use]
pub fn shortened(name: &str) -> String {
    name.trim().chars().take(100).collect()
}

impl Proxy {
    fn said(&self, presented: &Presented<'_>) -> Result<ResolvedCaller, Refusal> {
        if !presented.by_trusted_proxy {
            let peer = presented.peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
            return Err(Refusal::NotAllowed(format!(
                "only requests via a trusted proxy are accepted: this one came from {peer}, which is not in MONITOR_PROXY_TRUSTED"
            )));
        }
        let (user_header, role_header) = (&self.user_header, &self.role_header);
        let name = only(&presented.user, user_header, "MONITOR_PROXY_USER_HEADER")?
            .map(|name| shortened(&text_of(name)))
            .filter(|name| !name.is_empty())
            .ok_or_else(|| {
                Refusal::NotKnown(format!(
                    "the proxy sent no {user_header}: it must send the name there, or set MONITOR_PROXY_USER_HEADER"
                ))
            })?;
        let held = only(&presented.role, role_header, "MONITOR_PROXY_ROLE_HEADER")?
            .map(|held| text_of(held).trim().to_owned())
            .filter(|held| !held.is_empty());
        let role = match &held {
            None => self.default_role,
            Some(held) if self.roles.is_empty() => held.parse().ok(),
            Some(held) => self.role_of(held).or(self.default_role),
        };
        let role = role.ok_or_else(|| {
            Refusal::NotAllowed(match &held {
                None => format!(
                    "the proxy sent {user_header} {name:?} and no {role_header}: it must send a role there; or set \
                     MONITOR_PROXY_ROLE_HEADER, or MONITOR_PROXY_DEFAULT_ROLE"
                ),
                Some(held) if self.roles.is_empty() => format!(
                    "{role_header} held {}: expected viewer, operator or admin; MONITOR_PROXY_ROLES gives roles to groups",
                    quoted(held.as_bytes())
                ),
                Some(held) => format!(
                    "{role_header} held {}: MONITOR_PROXY_ROLES gives none of these groups a role",
                    quoted(held.as_bytes())
                ),
            })
        })?;
        Ok(ResolvedCaller { name, role, by_session: false, anonymous: false })
    }

    /// Highest role of these groups.
    fn role_of(&self, groups: &str) -> Option<Role> {
        highest_role(groups.split([',', ';', '|']).map(str::trim).chain([groups]), &self.roles)
    }
}

/// The single value of a header. Of two different values, one may be the client's own.
fn only<'a>(values: &[&'a [u8]], header: &str, setting: &str) -> Result<Option<&'a [u8]>, Refusal> {
    let Some((first, others)) = values.split_first() else { return Ok(None) };
    match others.iter().find(|other| *other != first) {
        None => Ok(Some(first)),
        Some(other) => Err(Refusal::NotAllowed(format!(
            "{header} is there {} times and held {} and {}: the proxy must replace what it is sent ({setting})",
            values.len(),
            quoted(first),
            quoted(other)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Credentials {
        let tokens =
            [(Role::Operator, "operator-61d0-ope".to_owned()), (Role::Viewer, "viewer-9f31-viewer-77".to_owned())];
        Credentials::new(&tokens, None).unwrap()
    }

    fn authorized<'a>(values: &[&'a str]) -> Presented<'a> {
        Presented { authorization: values.iter().map(|value| value.as_bytes()).collect(), ..Presented::default() }
    }

    /// The role, or the kind of refusal and its message.
    fn role(policy: &Policy, presented: &Presented<'_>) -> Result<Role, (&'static str, String)> {
        policy.who(presented).map(|known| known.role).map_err(|refusal| match refusal {
            Refusal::NotKnown(why) => ("not known", why),
            Refusal::Wrong(why) => ("wrong", why),
            Refusal::NotAllowed(why) => ("not allowed", why),
        })
    }

    fn refused(policy: &Policy, presented: &Presented<'_>) -> (&'static str, String) {
        role(policy, presented).unwrap_err()
    }

    #[test]
    fn without_authentication_only_local_host_names_are_accepted() {
        let with = |host: &'static [u8]| Presented { host: vec![host], ..Presented::default() };
        let policy = Policy::Nobody { hosts: Some(vec!["fleet.example".to_owned()]) };
        for host in [
            "localhost",
            "localhost:5440",
            "127.0.0.1:5440",
            "[::1]:5440",
            "127.9.9.9",
            "Fleet.example:443",
            "localhost.:5440",
        ] {
            assert_eq!(role(&policy, &with(host.as_bytes())), Ok(Role::Admin), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:5440", "10.0.0.1", ""] {
            let (how, why) = refused(&policy, &with(host.as_bytes()));
            assert!(how == "not allowed" && why.contains(&format!("{host:?}")) && why.contains("SERVER_URL"), "{why}");
        }
        assert_eq!(refused(&policy, &with(b"evil\xe9.example")).0, "not allowed", "no text is no missing header");
        let two = Presented { host: vec![b"localhost", b"evil.example"], ..Presented::default() };
        assert_eq!(refused(&policy, &two).0, "not allowed");
        assert_eq!(role(&policy, &Presented::default()), Ok(Role::Admin));
        assert_eq!(role(&Policy::Nobody { hosts: None }, &with(b"evil.example")), Ok(Role::Admin));
    }

    #[test]
    fn tokens_and_sessions_are_accepted_and_other_schemes_ignored() {
        let policy = Policy::Token(tokens());
        assert_eq!(role(&policy, &authorized(&["Bearer operator-61d0-ope"])), Ok(Role::Operator));
        assert_eq!(role(&policy, &authorized(&["bearer  operator-61d0-ope "])), Ok(Role::Operator));
        assert_eq!(role(&policy, &authorized(&["Basic Ym86eA==", "Bearer operator-61d0-ope"])), Ok(Role::Operator));
        for wrong in [&["Bearer operator-61d0-opf"][..], &["Bearer"], &["Bearer a", "Basic b"]] {
            assert_eq!(refused(&policy, &authorized(wrong)).0, "wrong", "{wrong:?}");
        }
        let (jwt, jwe) =
            ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJibyJ9.c2ln", "Bearer eyJlbmMiOiJBMTI4R0NNIn0.a.b.c.d");
        for (foreign, named) in [
            ("Basic Ym86eA==", "\"Basic\""),
            ("Negotiate YII=", "\"Negotiate\""),
            (jwt, "\"Bearer\""),
            (jwe, "\"Bearer\""),
            ("operator-61d0-ope", "no scheme"),
        ] {
            let (how, why) = refused(&policy, &authorized(&[foreign]));
            assert!(how == "not known" && why.contains(named) && why.contains("MONITOR_AUTH"), "{foreign}: {why}");
            assert!(!why.contains("operator") && !why.contains("Ym86eA"), "{why}");
        }
        assert_eq!(refused(&policy, &Presented::default()).0, "not known");
        for two in ["Bearer viewer-9f31-viewer-77", "Bearer wrong"] {
            assert_eq!(refused(&policy, &authorized(&["Bearer operator-61d0-ope", two])).0, "not allowed", "{two}");
        }
        let session = Session::declared("bo", Role::Operator);
        // Also with a token: whether it is right must not be found out beside a session.
        for foreign in [
            &[][..],
            &["Basic Ym86eA=="],
            &[jwt],
            &["Bearer of-the-proxy"],
            &["Basic a", "Negotiate b"],
            &["Bearer viewer-9f31-viewer-77"],
        ] {
            let presented = Presented { session: Some(&session), ..authorized(foreign) };
            assert_eq!(role(&policy, &presented), Ok(Role::Operator), "{foreign:?}");
        }
    }

    #[test]
    fn basic_accepts_the_token_as_password_with_any_name() {
        use base64::Engine as _;
        let policy = Policy::Basic(tokens());
        let basic = |login: &[u8]| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
        let name = |login: &[u8]| policy.who(&authorized(&[&basic(login)])).unwrap().name;
        assert_eq!(name(b"bo:operator-61d0-ope"), "bo (operator token)");
        assert_eq!(name("Zoë:operator-61d0-ope".as_bytes()), "Zoë (operator token)");
        assert_eq!(name(b"Zo\xeb:operator-61d0-ope"), "Zoë (operator token)");
        for wrong in [&basic(b"bo:wrong"), "Basic !!!", "Basic "] {
            assert_eq!(refused(&policy, &authorized(&[wrong])).0, "wrong", "{wrong}");
        }
        assert_eq!(refused(&policy, &authorized(&["Bearer operator-61d0-ope"])).0, "not known");
        let right = basic(b"bo:operator-61d0-ope");
        assert_eq!(role(&policy, &authorized(&["Bearer eyJ", &right])), Ok(Role::Operator));
    }

    /// A proxy that sends groups instead of roles, such as Authelia.
    fn proxy(roles: &[(&str, Role)], default_role: Option<Role>) -> Policy {
        Policy::Proxy(Proxy {
            user_header: "x-user".to_owned(),
            role_header: "x-role".to_owned(),
            roles: roles.iter().map(|(group, role)| ((*group).to_owned(), *role)).collect(),
            default_role,
        })
    }

    fn from_proxy<'a>(user: &[&'a str], role: &[&'a str]) -> Presented<'a> {
        Presented {
            by_trusted_proxy: true,
            user: user.iter().map(|value| value.as_bytes()).collect(),
            role: role.iter().map(|value| value.as_bytes()).collect(),
            ..Presented::default()
        }
    }

    #[test]
    fn headers_are_trusted_only_from_the_proxy_and_errors_name_header_value_and_setting() {
        let policy = proxy(&[], None);
        assert_eq!(role(&policy, &from_proxy(&["bo"], &["viewer"])), Ok(Role::Viewer));
        assert_eq!(role(&policy, &from_proxy(&["bo", "bo"], &["viewer"])), Ok(Role::Viewer));
        let elsewhere = Presented {
            by_trusted_proxy: false,
            peer: Some(IpAddr::from([10, 1, 2, 3])),
            ..from_proxy(&["bo"], &["admin"])
        };
        for (presented, expected, named) in [
            (elsewhere, "not allowed", ["10.1.2.3", "MONITOR_PROXY_TRUSTED"]),
            (from_proxy(&[], &["admin"]), "not known", ["x-user", "MONITOR_PROXY_USER_HEADER"]),
            (from_proxy(&[" "], &["admin"]), "not known", ["x-user", "MONITOR_PROXY_USER_HEADER"]),
            (from_proxy(&["bo"], &[]), "not allowed", ["x-role", "MONITOR_PROXY_DEFAULT_ROLE"]),
            (from_proxy(&["bo"], &["root"]), "not allowed", ["x-role held \"root\"", "MONITOR_PROXY_ROLES"]),
            (from_proxy(&["bo"], &["viewer,admin"]), "not allowed", ["\"viewer,admin\"", "MONITOR_PROXY_ROLES"]),
            (
                from_proxy(&["bo", "eve"], &["viewer"]),
                "not allowed",
                ["\"bo\" and \"eve\"", "MONITOR_PROXY_USER_HEADER"],
            ),
            (
                from_proxy(&["bo"], &["viewer", "admin"]),
                "not allowed",
                ["x-role is there 2 times", "MONITOR_PROXY_ROLE_HEADER"],
            ),
        ] {
            let (how, why) = refused(&policy, &presented);
            assert!(how == expected && named.iter().all(|part| why.contains(part)), "{presented:?}: {how}, {why}");
        }
    }

    #[test]
    fn user_names_may_be_any_text_and_roles_come_from_groups_or_the_default() {
        let policy = proxy(&[("sre", Role::Admin), ("/ops team", Role::Operator)], Some(Role::Viewer));
        for (groups, expected) in [
            (&["dev,sre"][..], Role::Admin),
            (&["dev | /ops team"], Role::Operator),
            (&["/ops team"], Role::Operator),
            (&["admin"], Role::Viewer),
            (&["dev"], Role::Viewer),
            (&[""], Role::Viewer),
            (&[], Role::Viewer),
        ] {
            assert_eq!(role(&policy, &from_proxy(&["bo"], groups)), Ok(expected), "{groups:?}");
        }
        let strict = proxy(&[("sre", Role::Admin)], None);
        let (how, why) = refused(&strict, &from_proxy(&["bo"], &["admin,dev"]));
        assert!(how == "not allowed" && why.contains("\"admin,dev\"") && why.contains("MONITOR_PROXY_ROLES"), "{why}");
        let named = |user: &'static [u8]| {
            policy.who(&Presented { user: vec![user], ..from_proxy(&[], &["sre"]) }).unwrap().name
        };
        assert_eq!(named("Zoë Müller".as_bytes()), "Zoë Müller");
        assert_eq!(named(b"Zo\xeb"), "Zoë");
        // The default replaces a missing role, not a misspelled one.
        assert!(role(&proxy(&[], Some(Role::Viewer)), &from_proxy(&["bo"], &["admim"])).is_err());
    }
}
