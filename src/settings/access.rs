//! Settings of access control.

use std::time::Duration;

use super::{ACCEPTED, BadSetting, Settings, Texts};
use crate::access::Role;
use crate::access::address::TrustedProxies;
use crate::access::policy::{Credentials, Policy, Proxy};
use crate::access::tokens::{BadTokens, SHORTEST, weakness};

/// Setting with the token of each role.
const TOKENS: [(Role, &str); 3] = [
    (Role::Viewer, "MONITOR_VIEWER_TOKEN"),
    (Role::Operator, "MONITOR_OPERATOR_TOKEN"),
    (Role::Admin, "MONITOR_ADMIN_TOKEN"),
];
/// Secret that proves rows of named users and sessions.
const SECRET_KEY: &str = "MONITOR_SECRET_KEY";
/// Its minimum length, characters.
const SHORTEST_KEY: usize = 32;

impl Settings {
    /// Prevents serving everybody with full access by accident.
    ///
    /// # Errors
    /// If no authentication is required and the address is not loopback.
    pub fn may_serve(&self) -> Result<(), BadSetting> {
        let alone = self.bind.is_loopback() || self.anybody_may;
        if !matches!(self.access, Policy::Nobody { .. }) || alone {
            return Ok(());
        }
        Err(BadSetting {
            name: "MONITOR_AUTH",
            value: "none".to_owned(),
            expected: format!(
                "token, basic or proxy while MONITOR_BIND is {}: whoever reaches it could change everything ({ACCEPTED}=yes \
                 if that is meant)",
                self.bind
            ),
        })
    }
}

impl Texts<'_> {
    pub(super) fn access(&self) -> Result<Policy, BadSetting> {
        match self.text("MONITOR_AUTH").unwrap_or_default().as_str() {
            "none" => {
                let own = self.text("SERVER_URL").as_deref().and_then(host).map(str::to_owned);
                Ok(Policy::Nobody { hosts: (!self.anybody_may()).then(|| own.into_iter().collect()) })
            }
            "token" => Ok(Policy::Token(self.credentials()?)),
            "basic" => Ok(Policy::Basic(self.credentials()?)),
            "proxy" => Ok(Policy::Proxy(self.proxy()?)),
            _ => Err(self.bad("MONITOR_AUTH", "none, token, basic or proxy")),
        }
    }

    pub(super) fn anybody_may(&self) -> bool {
        self.text(ACCEPTED).is_some_and(|text| text == "yes")
    }

    fn credentials(&self) -> Result<Credentials, BadSetting> {
        let tokens: Vec<(Role, String)> =
            TOKENS.iter().filter_map(|(role, name)| Some((*role, self.text(name)?))).collect();
        let secret = self.secret_key()?;
        if tokens.is_empty() && secret.is_none() {
            return Err(BadSetting {
                name: "MONITOR_ADMIN_TOKEN",
                value: String::new(),
                expected: format!(
                    "a token (or one for another role, or {SECRET_KEY} for named users), as MONITOR_AUTH asks for"
                ),
            });
        }
        let named = |role| TOKENS.iter().find(|(known, _)| *known == role).map_or("MONITOR_ADMIN_TOKEN", |t| t.1);
        Credentials::new(&tokens, secret.as_deref()).map_err(|bad| match bad {
            BadTokens::Short(role) => self.bad(named(role), format!("at least {SHORTEST} characters")),
            BadTokens::Weak(role, why) => self.bad(
                named(role),
                format!("a token that cannot be guessed ({why}); make one with openssl rand -hex 24"),
            ),
            BadTokens::Twice(role) => self.bad(named(role), "another token than that of another role"),
        })
    }

    pub(super) fn secret_key(&self) -> Result<Option<String>, BadSetting> {
        let Some(text) = self.text(SECRET_KEY) else { return Ok(None) };
        let short = (text.chars().count() < SHORTEST_KEY).then_some("it is shorter");
        match short.or_else(|| weakness(&text)) {
            None => Ok(Some(text)),
            Some(why) => Err(self.bad(
                SECRET_KEY,
                format!(
                    "{SHORTEST_KEY} characters that cannot be guessed ({why}); make them with openssl rand -hex 32"
                ),
            )),
        }
    }

    pub(super) fn session_lifetime(&self, name: &'static str) -> Result<Duration, BadSetting> {
        let lifetime = self.duration(name)?;
        let right = (Duration::from_secs(1)..=Duration::from_secs(365 * 86_400)).contains(&lifetime);
        if right { Ok(lifetime) } else { Err(self.bad(name, "between 1s and 8760h")) }
    }

    /// Proxies whose `X-Forwarded-For` is trusted and, in mode `proxy`, whose user and role headers are.
    pub(super) fn trusted_proxies(&self) -> Result<TrustedProxies, BadSetting> {
        let network = |text: &String| {
            let address = || text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
            text.parse::<ipnet::IpNet>().or_else(|_| address()).ok()
        };
        let trusted: Option<Vec<_>> = self.list("MONITOR_PROXY_TRUSTED").iter().map(network).collect();
        let needed = self.text("MONITOR_AUTH").is_some_and(|mode| mode == "proxy");
        let expected = if needed { ", as MONITOR_AUTH is proxy" } else { "" };
        let trusted = trusted.filter(|trusted| !needed || !trusted.is_empty()).ok_or_else(|| {
            self.bad("MONITOR_PROXY_TRUSTED", format!("addresses or networks such as 10.0.0.0/8{expected}"))
        })?;
        Ok(TrustedProxies::new(trusted))
    }

    fn proxy(&self) -> Result<Proxy, BadSetting> {
        let header = |name| {
            let text = self.text(name).unwrap_or_default().to_ascii_lowercase();
            let right = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            if right { Ok(text) } else { Err(self.bad(name, "the name of a header")) }
        };
        let (user, role) = ("MONITOR_PROXY_USER_HEADER", "MONITOR_PROXY_ROLE_HEADER");
        let (roles, default) = ("MONITOR_PROXY_ROLES", "MONITOR_PROXY_DEFAULT_ROLE");
        let group = |text: &String| {
            let (group, role) = text.rsplit_once('=')?;
            Some((group.trim().to_owned(), role.trim().parse().ok()?)).filter(|(group, _)| !group.is_empty())
        };
        let groups: Option<Vec<_>> = self.list(roles).iter().map(group).collect();
        let default_role = self.text(default).map(|text| text.trim().parse()).transpose();
        Ok(Proxy {
            user_header: header(user)?,
            role_header: header(role)?,
            roles: groups
                .ok_or_else(|| self.bad(roles, "GROUP=viewer, GROUP=operator or GROUP=admin, separated by commas"))?,
            default_role: default_role.map_err(|_| self.bad(default, "viewer, operator or admin"))?,
        })
    }
}

/// Host of a URL, without its port.
fn host(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let host = rest.split(['/', '?', '#']).next()?;
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(name),
        _ => Some(host),
    }
}
