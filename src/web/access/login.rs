//! The login page: exchanges a token for a session cookie, or starts the login at an identity provider.

use actix_web::cookie::Cookie;
use actix_web::dev::UrlEncoded;
use actix_web::http::StatusCode;
use actix_web::http::header::{LOCATION, ORIGIN};
use actix_web::web::{Data, Payload, Query};
use actix_web::{Error, HttpRequest, HttpResponse};
use serde::Deserialize;

use super::cookies::SESSION;
use super::failures::{Attempt, Holder};
use super::gate::percent_encoding;
use crate::access::policy::{Session, shortened};
use crate::access::security_events::{SecurityEvent, SecurityKind};
use crate::pages::login::{LoginPage, Provider};
use crate::web::AppState;
use crate::web::html::html_with;
use crate::web::problem::Problem;
use crate::web::text_limits::ADDRESS;

/// Maximum size of the form, bytes. It requires no credentials.
const MOST_FORM: usize = 8 << 10;

/// Query of `GET /login` and `GET /login/start`.
#[derive(Debug, Deserialize)]
pub struct LoginQuery {
    pub(super) next: Option<String>,
}

/// Form of the login page.
#[derive(Debug, Deserialize)]
pub struct LoginForm {
    token: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    next: String,
}

/// `GET /login?next=`.
pub async fn page(front: Data<AppState>, query: Query<LoginQuery>) -> Result<HttpResponse, Problem> {
    front.lock.policy.login().ok_or(Problem::NotFound)?;
    let next = query.into_inner().next.unwrap_or_default();
    shown(&front, local(&next, front.site.root()), false)
}

/// `POST /login`: sets the session cookie and redirects to the requested page.
pub async fn enter(request: HttpRequest, front: Data<AppState>, body: Payload) -> Result<HttpResponse, Error> {
    let credentials = front.lock.policy.login().ok_or(Problem::NotFound)?;
    let given = UrlEncoded::<LoginForm>::new(&request, &mut body.into_inner()).limit(MOST_FORM).await?;
    let next = local(&given.next, front.site.root());
    let name = shortened(&given.name);
    let address = front.lock.client(&request);
    let account = (!name.is_empty()).then_some(name);
    let attempt = Attempt { address, account };
    let owner = match given.token.trim().parse() {
        Ok(token) => front.lock.owner(&token, &attempt).await?,
        Err(()) => None,
    };
    let with_token = |role| Session::declared(&given.name, role);
    let session = match &owner {
        Some(user) => Some(Session::of(user)),
        None => credentials.tokens.role_of(given.token.trim()).map(with_token),
    };
    let holder = session.as_ref().map(|session| match &session.token_id {
        Some(id) => Holder::User(id.clone()),
        None => Holder::Role(session.role),
    });
    front.lock.settle(&attempt, holder).await?;
    let Some(session) = session else {
        return Ok(shown(&front, next, true)?);
    };
    let cookie = begin(&request, &front, session, String::new()).await?;
    Ok(HttpResponse::SeeOther().cookie(cookie).insert_header((LOCATION, next)).finish())
}

/// Creates a session, and records the login. Returns the cookie.
pub(super) async fn begin(
    request: &HttpRequest,
    front: &AppState,
    session: Session,
    detail: String,
) -> Result<Cookie<'static>, Problem> {
    let sessions = front.lock.sessions.as_ref().ok_or(Problem::NotFound)?;
    let (kind, user, role) = (SecurityKind::Login, session.name.clone(), Some(session.role));
    let value = sessions.begin(&front.io, session).await;
    let value = value.ok_or_else(|| Problem::Unavailable("the system has no random numbers; try again".to_owned()))?;
    front.lock.security.note(SecurityEvent { kind, user, role, address: front.lock.client(request), detail });
    Ok(cookie(request, front, value, sessions.absolute().as_secs()))
}

/// `POST /logout`: ends the session, closes its websockets and removes the cookie.
pub async fn leave(request: HttpRequest, front: Data<AppState>) -> Result<HttpResponse, Problem> {
    front.lock.policy.login().ok_or(Problem::NotFound)?;
    let sessions = front.lock.sessions.as_ref().ok_or(Problem::NotFound)?;
    // Each of them would be accepted: another site of this host may have set one.
    for id in front.lock.session_ids(&request) {
        let Some(session) = sessions.end(&front.io, &id).await else { continue };
        let (kind, address) = (SecurityKind::Logout, front.lock.client(&request));
        let (user, role) = (session.name, Some(session.role));
        front.lock.security.note(SecurityEvent { kind, user, role, address, detail: String::new() });
    }
    let login = format!("{}/login", front.site.root());
    Ok(HttpResponse::SeeOther()
        .cookie(cookie(&request, &front, String::new(), 0))
        .insert_header((LOCATION, login))
        .finish())
}

/// Secure if users connect over an encrypted connection: according to `SERVER_URL`, or to the origin of the login page.
fn cookie(request: &HttpRequest, front: &AppState, value: String, seconds: u64) -> Cookie<'static> {
    let by_page = request.headers().get(ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    SESSION.with(value, seconds, front.site.is_encrypted() || by_page, front.site.root())
}

/// Redirect target, restricted to this site to prevent open redirects.
pub(super) fn local(next: &str, root: &str) -> String {
    let bytes = next.as_bytes();
    let here = bytes.first() == Some(&b'/') && !matches!(bytes.get(1), Some(b'/' | b'\\'));
    if here && next.len() <= ADDRESS && !next.chars().any(char::is_control) {
        next.to_owned()
    } else {
        format!("{root}/")
    }
}

fn shown(front: &AppState, next: String, wrong: bool) -> Result<HttpResponse, Problem> {
    let provider = front.lock.provider.as_ref().map(|provider| Provider {
        host: provider.host().to_owned(),
        start: format!("{}/login/start?next={}", front.site.root(), percent_encoding(&next)),
    });
    let page = LoginPage { next, wrong, provider };
    html_with(if wrong { StatusCode::UNAUTHORIZED } else { StatusCode::OK }, page.html(&front.site))
}

#[cfg(test)]
mod tests {
    use super::local;

    #[test]
    fn a_login_redirects_only_within_this_site() {
        for next in ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", "/a\nb"] {
            assert_eq!(local(next, "/m"), "/m/", "{next}");
        }
        assert_eq!(local("/m/alerts?x=1", "/m"), "/m/alerts?x=1");
    }
}
