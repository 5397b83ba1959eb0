//! Cookies of sessions and of started logins.
//!
//! On encrypted connections their names have prefixes that browsers accept from encrypted connections only, and
//! `__Host-` only for this exact host and the path `/`.

use actix_web::cookie::time::Duration;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::header::{COOKIE, HeaderMap, HeaderValue};

/// Maximum number of cookies of one name that are looked at.
const MOST: usize = 4;

/// A cookie of the monitor.
pub(in crate::web) struct CookieKind {
    /// Name on unencrypted connections.
    pub(in crate::web) name: &'static str,
    host_only: &'static str,
    secure: &'static str,
    same_site: SameSite,
}

/// ID of a session.
pub(in crate::web) const SESSION: CookieKind = CookieKind {
    name: "shepherd_session",
    host_only: "__Host-shepherd_session",
    secure: "__Secure-shepherd_session",
    same_site: SameSite::Strict,
};

/// A login that was started; the identity provider sends the browser back from another site.
pub(super) const STARTED_LOGIN: CookieKind = CookieKind {
    name: "shepherd_login",
    host_only: "__Host-shepherd_login",
    secure: "__Secure-shepherd_login",
    same_site: SameSite::Lax,
};

impl CookieKind {
    /// Name on encrypted connections, for the pages below `root`.
    fn encrypted_name(&self, root: &str) -> &'static str {
        if root.is_empty() { self.host_only } else { self.secure }
    }

    /// The cookie for the pages below `root`, for `seconds`; with 0, the browser removes it. Scripts cannot read it.
    pub(super) fn with(&self, value: String, seconds: u64, encrypted: bool, root: &str) -> Cookie<'static> {
        let name = if encrypted { self.encrypted_name(root) } else { self.name };
        Cookie::build(name, value)
            .path(if root.is_empty() { "/".to_owned() } else { root.to_owned() })
            .http_only(true)
            .same_site(self.same_site)
            .secure(encrypted)
            .max_age(Duration::seconds(i64::try_from(seconds).unwrap_or(i64::MAX)))
            .finish()
    }

    /// Values in a request, by the names that [`Self::with`] sets: a sibling host can set cookies with the other prefix. With
    /// `encrypted`, cookies that could have been set over an unencrypted connection are ignored.
    pub(super) fn values(&self, headers: &HeaderMap, encrypted: bool, root: &str) -> Vec<String> {
        let plain = (!encrypted).then_some(self.name);
        let names = [self.encrypted_name(root)].into_iter().chain(plain);
        names.map(|name| named(headers, name)).find(|values| !values.is_empty()).unwrap_or_default()
    }
}

/// Values of the cookies with this name. Cookies of other applications on the host may be malformed.
fn named(headers: &HeaderMap, name: &str) -> Vec<String> {
    let all = headers.get_all(COOKIE).map(HeaderValue::as_bytes).flat_map(|value| value.split(|byte| *byte == b';'));
    let named = all.filter_map(|cookie| {
        let (given, value) = str::from_utf8(cookie).ok()?.split_once('=')?;
        (given.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    });
    named.take(MOST).collect()
}
