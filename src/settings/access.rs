//! Settings of access control.

use std::time::Duration;

use super::{ACCEPTED, BadSetting, Settings, Texts};
use crate::access::Role;
use crate::access::address::TrustedProxies;
use crate::access::oidc::Oidc;
use crate::access::policy::{Credentials, Policy, Proxy};
use crate::access::tokens::{BadTokens, SHORTEST, weakness};
use crate::tcp;

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
/// Format of the roles of groups.
const GROUP_ROLES: &str = "GROUP=viewer, GROUP=operator or GROUP=admin, separated by commas";

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
                "token, basic, proxy or oidc while MONITOR_BIND is {}: whoever reaches it could change everything ({ACCEPTED}=yes \
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
            "oidc" => Ok(Policy::Oidc { provider: Box::new(self.oidc()?), credentials: self.credentials()? }),
            _ => Err(self.bad("MONITOR_AUTH", "none, token, basic, proxy or oidc")),
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
        Ok(Proxy {
            user_header: header("MONITOR_PROXY_USER_HEADER")?,
            role_header: header("MONITOR_PROXY_ROLE_HEADER")?,
            roles: self.roles("MONITOR_PROXY_ROLES")?,
            default_role: self.role("MONITOR_PROXY_DEFAULT_ROLE")?,
        })
    }

    fn oidc(&self) -> Result<Oidc, BadSetting> {
        let (issuer, id, url) = ("MONITOR_OIDC_ISSUER", "MONITOR_OIDC_CLIENT_ID", "SERVER_URL");
        let mode = "as MONITOR_AUTH is oidc";
        let needed = |name| self.text(name).ok_or_else(|| self.bad(name, format!("a value, {mode}")));
        if self.secret_key()?.is_none() {
            return Err(BadSetting {
                name: SECRET_KEY,
                value: String::new(),
                expected: format!("a secret, which proves sessions, {mode}; make it with openssl rand -hex 32"),
            });
        }
        let roles = self.roles("MONITOR_OIDC_ROLES")?;
        let default_role = self.role("MONITOR_OIDC_DEFAULT_ROLE")?;
        if roles.is_empty() && default_role.is_none() {
            return Err(self.bad("MONITOR_OIDC_ROLES", format!("{GROUP_ROLES}; or set MONITOR_OIDC_DEFAULT_ROLE")));
        }
        let root = self.root_path()?;
        let own = self.encrypted_url(url)?.ok_or_else(|| self.bad(url, format!("the public URL, {mode}")))?;
        let own = own.trim_end_matches('/');
        // With a root path, cookies are limited to it.
        let path = reqwest::Url::parse(own).map(|own| own.path().to_owned()).unwrap_or_default();
        let root = if path.ends_with(&root) { "" } else { &root };
        let redirect_url = format!("{own}{root}/login/callback");
        Ok(Oidc {
            issuer: self.encrypted_url(issuer)?.ok_or_else(|| self.bad(issuer, format!("an issuer URL, {mode}")))?,
            client_id: needed(id)?,
            client_secret: self.text("MONITOR_OIDC_CLIENT_SECRET"),
            redirect_url,
            scopes: self.list("MONITOR_OIDC_SCOPES").into_iter().filter(|scope| scope != "openid").collect(),
            authorities: self.authorities("MONITOR_OIDC_CA_FILE")?,
            user_claim: needed("MONITOR_OIDC_USER_CLAIM")?,
            groups_claim: needed("MONITOR_OIDC_GROUPS_CLAIM")?,
            roles,
            default_role,
        })
    }

    /// A URL with TLS, or of this machine: tokens are sent there.
    fn encrypted_url(&self, name: &'static str) -> Result<Option<String>, BadSetting> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let url = reqwest::Url::parse(&text).ok().filter(|url| url.query().is_none() && url.fragment().is_none());
        let right = url.as_ref().is_some_and(|url| {
            let here = || url.host_str().is_some_and(tcp::is_loopback);
            url.scheme() == "https" || url.scheme() == "http" && here()
        });
        if right {
            return Ok(Some(text));
        }
        Err(self.bad(name, "a URL such as https://id.example, as MONITOR_AUTH is oidc (http:// on this machine only)"))
    }

    /// Roles of groups.
    fn roles(&self, name: &'static str) -> Result<Vec<(String, Role)>, BadSetting> {
        let group = |text: &String| {
            let (group, role) = text.rsplit_once('=')?;
            Some((group.trim().to_owned(), role.trim().parse().ok()?)).filter(|(group, _)| !group.is_empty())
        };
        let groups: Option<Vec<_>> = self.list(name).iter().map(group).collect();
        groups.ok_or_else(|| self.bad(name, GROUP_ROLES))
    }

    fn role(&self, name: &'static str) -> Result<Option<Role>, BadSetting> {
        let role = self.text(name).map(|text| text.trim().parse()).transpose();
        role.map_err(|_| self.bad(name, "viewer, operator or admin"))
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
