//! How the monitor finds out who asks: `MONITOR_AUTH`.

use std::net::IpAddr;

use super::Role;
use super::tokens::Tokens;

/// How it finds out.
#[derive(Debug, Clone)]
pub enum Policy {
    /// It does not: whoever reaches the port may do everything.
    Nobody {
        /// Names under which it may be reached, beside those of this machine; `None`: any.
        hosts: Option<Vec<String>>,
    },
    /// By a bearer token, or the session of a browser that logged in with one.
    Token(Tokens),
    /// By name and password; passwords are the tokens, the name is for the audit.
    Basic(Tokens),
    /// By what a proxy says.
    Proxy(Proxy),
}

/// A proxy that has asked already who it is.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The header with the name.
    pub user_header: String,
    /// The header with the role.
    pub role_header: String,
}

/// What a request brings.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// It comes from a proxy that is believed.
    pub by_trusted_proxy: bool,
    /// `Host`.
    pub host: Option<&'a str>,
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// The session of its cookie, if that is open.
    pub session: Option<&'a Session>,
    /// What the proxy says the name is, and the role.
    pub said: (Option<&'a str>, Option<&'a str>),
}

/// Who a session is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What they call themselves.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What they are called.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// They were asked, and by the login page.
    pub by_session: bool,
    /// Nobody was asked.
    pub anonymous: bool,
}

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing was presented.
    NotKnown,
    /// What was presented is wrong.
    Wrong,
    /// It comes from where no proxy is trusted.
    NotTheProxy,
    /// It was sent to another name than this monitor's: a page elsewhere may be behind it.
    OtherHost,
}

impl Policy {
    /// Who asks.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn who(&self, presented: &Presented<'_>) -> Result<Known, Refusal> {
        match self {
            Self::Nobody { hosts } => nobody(hosts.as_deref(), presented.host),
            Self::Token(tokens) => by_token(tokens, presented),
            Self::Basic(tokens) => by_password(tokens, presented),
            Self::Proxy(_) => Proxy::said(presented),
        }
    }

    /// The name that a request claims, right or wrong: by it wrong passwords are counted.
    #[must_use]
    pub fn account(&self, presented: &Presented<'_>) -> Option<String> {
        match self {
            Self::Basic(_) => presented.authorization.and_then(name_and_password).map(|(name, _)| shortened(&name)),
            Self::Nobody { .. } | Self::Token(_) | Self::Proxy(_) => None,
        }
    }

    /// What a program is to present: the challenge of a 401.
    #[must_use]
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Token(_) => Some("Bearer realm=\"shepherd-monitor\""),
            Self::Basic(_) => Some("Basic realm=\"shepherd-monitor\", charset=\"UTF-8\""),
            Self::Nobody { .. } | Self::Proxy(_) => None,
        }
    }

    /// The tokens of the login page, if there is one.
    #[must_use]
    pub fn login(&self) -> Option<&Tokens> {
        match self {
            Self::Token(tokens) => Some(tokens),
            _ => None,
        }
    }
}

fn nobody(hosts: Option<&[String]>, host: Option<&str>) -> Result<Known, Refusal> {
    let name = host.map(name_of);
    // A program need not say a host; a browser always does.
    let known = name.is_none_or(|name| {
        is_this_machine(name) || hosts.is_none_or(|hosts| hosts.iter().any(|known| known.eq_ignore_ascii_case(name)))
    });
    if !known {
        return Err(Refusal::OtherHost);
    }
    Ok(Known { name: "anybody".to_owned(), role: Role::Admin, by_session: false, anonymous: true })
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_this_machine(name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn by_token(tokens: &Tokens, presented: &Presented<'_>) -> Result<Known, Refusal> {
    if let Some(authorization) = presented.authorization {
        let token = after_scheme(authorization, "bearer").ok_or(Refusal::Wrong)?;
        let role = tokens.role_of(token).ok_or(Refusal::Wrong)?;
        return Ok(Known { name: format!("{role} token"), role, by_session: false, anonymous: false });
    }
    // One that is over is as none: the login page comes again.
    let session = presented.session.ok_or(Refusal::NotKnown)?;
    Ok(Known { name: session.name.clone(), role: session.role, by_session: true, anonymous: false })
}

fn by_password(tokens: &Tokens, presented: &Presented<'_>) -> Result<Known, Refusal> {
    let authorization = presented.authorization.ok_or(Refusal::NotKnown)?;
    let (name, password) = name_and_password(authorization).ok_or(Refusal::Wrong)?;
    let role = tokens.role_of(&password).ok_or(Refusal::Wrong)?;
    let name = if name.is_empty() { role.as_str() } else { &name };
    Ok(Known { name: shortened(name), role, by_session: false, anonymous: false })
}

fn name_and_password(authorization: &str) -> Option<(String, String)> {
    use base64::Engine as _;
    let encoded = after_scheme(authorization, "basic")?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()))
}

fn after_scheme<'a>(authorization: &'a str, scheme: &str) -> Option<&'a str> {
    let (given, rest) = authorization.split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

/// Names are shown and written down: so long at most.
#[must_use]
pub fn shortened(name: &str) -> String {
    name.trim().chars().take(100).collect()
}

impl Proxy {
    fn said(presented: &Presented<'_>) -> Result<Known, Refusal> {
        if !presented.by_trusted_proxy {
            return Err(Refusal::NotTheProxy);
        }
        let (Some(name), Some(role)) = presented.said else { return Err(Refusal::NotKnown) };
        let name = shortened(name);
        if name.is_empty() {
            return Err(Refusal::NotKnown);
        }
        let role = role.parse().map_err(|_| Refusal::Wrong)?;
        Ok(Known { name, role, by_session: false, anonymous: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Presented<'_> =
        Presented { by_trusted_proxy: false, host: None, authorization: None, session: None, said: (None, None) };

    fn tokens() -> Tokens {
        Tokens::new(&[(Role::Operator, "operator-61d0-ope".to_owned())]).unwrap()
    }

    fn role(policy: &Policy, presented: Presented<'_>) -> Result<Role, Refusal> {
        policy.who(&presented).map(|known| known.role)
    }

    #[test]
    fn without_login_only_this_machines_names_are_answered() {
        let policy = Policy::Nobody { hosts: Some(vec!["fleet.example".to_owned()]) };
        for host in ["localhost", "localhost:5440", "127.0.0.1:5440", "[::1]:5440", "127.9.9.9", "Fleet.example:443"] {
            assert_eq!(role(&policy, Presented { host: Some(host), ..NOTHING }), Ok(Role::Admin), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:5440", "10.0.0.1", ""] {
            assert_eq!(role(&policy, Presented { host: Some(host), ..NOTHING }), Err(Refusal::OtherHost), "{host}");
        }
        let any = Policy::Nobody { hosts: None };
        assert_eq!(role(&any, Presented { host: Some("evil.example"), ..NOTHING }), Ok(Role::Admin));
    }

    #[test]
    fn a_bearer_token_or_a_session_is_known() {
        let policy = Policy::Token(tokens());
        let with = |authorization| Presented { authorization: Some(authorization), ..NOTHING };
        assert_eq!(role(&policy, with("Bearer operator-61d0-ope")), Ok(Role::Operator));
        assert_eq!(role(&policy, with("bearer  operator-61d0-ope ")), Ok(Role::Operator));
        for wrong in ["Bearer operator-61d0-opf", "operator-61d0-ope", "Basic operator-61d0-ope", "Bearer"] {
            assert_eq!(role(&policy, with(wrong)), Err(Refusal::Wrong), "{wrong}");
        }
        assert_eq!(role(&policy, NOTHING), Err(Refusal::NotKnown));
        let session = Session { name: "bo".to_owned(), role: Role::Operator };
        assert_eq!(role(&policy, Presented { session: Some(&session), ..NOTHING }), Ok(Role::Operator));
    }

    #[test]
    fn a_password_is_the_token_and_the_name_is_for_the_audit() {
        let policy = Policy::Basic(tokens());
        let with = |authorization| Presented { authorization: Some(authorization), ..NOTHING };
        // "bo:operator-61d0-ope", and "bo:wrong".
        let known = policy.who(&with("Basic Ym86b3BlcmF0b3ItNjFkMC1vcGU=")).unwrap();
        assert_eq!((known.name.as_str(), known.role), ("bo", Role::Operator));
        for wrong in ["Basic Ym86d3Jvbmc=", "Basic !!!", "Basic ", "Bearer operator-61d0-ope"] {
            assert_eq!(role(&policy, with(wrong)), Err(Refusal::Wrong), "{wrong}");
        }
    }

    #[test]
    fn only_the_proxy_is_believed_and_only_if_it_says_both() {
        let proxy = Proxy { user_header: "x-user".to_owned(), role_header: "x-role".to_owned() };
        let policy = Policy::Proxy(proxy);
        let from = |by_trusted_proxy, said| Presented { by_trusted_proxy, said, ..NOTHING };
        assert_eq!(role(&policy, from(true, (Some("bo"), Some("viewer")))), Ok(Role::Viewer));
        assert_eq!(role(&policy, from(false, (Some("bo"), Some("admin")))), Err(Refusal::NotTheProxy));
        assert_eq!(role(&policy, from(true, (Some("bo"), None))), Err(Refusal::NotKnown));
        assert_eq!(role(&policy, from(true, (Some(" "), Some("admin")))), Err(Refusal::NotKnown));
        assert_eq!(role(&policy, from(true, (Some("bo"), Some("root")))), Err(Refusal::Wrong));
    }
}
