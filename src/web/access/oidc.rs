//! Login at an identity provider: sends the browser there, and creates the session when it comes back.

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use super::cookies::STARTED_LOGIN;
use super::failures::Attempt;
use super::gate::unix_seconds;
use super::login::{LoginQuery, begin, local};
use crate::access::oidc::{LOGIN_WITHIN, StartedLogin};
use crate::access::policy::{Credentials, Session};
use crate::access::sealing::SealingKey;
use crate::identity_provider::{IdentityProvider, LoginError};
use crate::pages::login::LoggedInPage;
use crate::web::AppState;
use crate::web::html::html;
use crate::web::problem::Problem;

/// Started logins are cookies of the whole host, also below a root path: only then can no sibling host set them.
const WHOLE_HOST: &str = "";
/// Maximum length of the provider's reason in an error message, characters.
const MOST_REASON: usize = 200;

/// Query of `GET /login/callback`.
#[derive(Debug, Deserialize)]
pub struct CallbackQuery {
    #[serde(default)]
    code: String,
    #[serde(default)]
    state: String,
    /// Issuer (RFC 9207).
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// `GET /login/start?next=`: redirects to the identity provider.
pub async fn start(front: Data<AppState>, query: Query<LoginQuery>) -> Result<HttpResponse, Problem> {
    let (provider, key) = provider(&front)?;
    let next = local(&query.into_inner().next.unwrap_or_default(), front.site.root());
    let (url, login) = provider.begin(next, unix_seconds()).await?;
    let cookie = STARTED_LOGIN.with(login.seal(key), LOGIN_WITHIN, front.site.is_encrypted(), WHOLE_HOST);
    Ok(HttpResponse::SeeOther().cookie(cookie).insert_header((LOCATION, url)).finish())
}

/// `GET /login/callback`: creates the session. The response is a page that continues by itself: after a redirect from
/// another site, the browser would not send the session cookie.
pub async fn callback(
    request: HttpRequest,
    front: Data<AppState>,
    query: Query<CallbackQuery>,
) -> Result<HttpResponse, Problem> {
    let (provider, key) = provider(&front)?;
    let query = query.into_inner();
    let attempt = Attempt { address: front.lock.client(&request), account: None };
    let cookies = STARTED_LOGIN.values(request.headers(), front.site.is_encrypted(), WHOLE_HOST);
    let started = cookies.iter().filter_map(|cookie| StartedLogin::open(cookie, key, unix_seconds()));
    let login = started.into_iter().find(|login| login.state == query.state).ok_or_else(|| {
        Problem::BadRequest(format!(
            "this login was not started by this browser within the last {} minutes, or another one was started after it; \
             log in again",
            LOGIN_WITHIN / 60
        ))
    })?;
    if let Some(error) = query.error {
        let told = query.error_description.map(|text| format!(" ({text})")).unwrap_or_default();
        let why: String = format!("{error}{told}").chars().take(MOST_REASON).collect();
        return Err(Problem::Forbidden(format!("the identity provider refused the login: {why}")));
    }
    // Each attempt is a request to the provider.
    front.lock.failures.may_verify(&attempt)?;
    let finished = match provider.is_issuer(query.iss.as_deref()) {
        true => provider.finish(&login, query.code).await,
        false => Err(LoginError::Rejected("the answer comes from another identity provider (iss)".to_owned())),
    };
    if let Err(LoginError::Rejected(why)) = &finished {
        front.lock.settle_rejected(&request, &attempt, why).await?;
    }
    let user = finished?;
    let session = Session::authenticated(user.name, user.role);
    let cookie = begin(&request, &front, session, format!("subject {} of {}", user.subject, provider.issuer())).await?;
    let mut response = html(LoggedInPage { next: login.next }.html(&front.site))?;
    let ended = STARTED_LOGIN.with(String::new(), 0, front.site.is_encrypted(), WHOLE_HOST);
    for cookie in [cookie, ended] {
        response.add_cookie(&cookie).map_err(|_| Problem::Unavailable("the session cookie is invalid".to_owned()))?;
    }
    Ok(response)
}

/// The provider, and the key of started logins.
fn provider(front: &AppState) -> Result<(&IdentityProvider, &SealingKey), Problem> {
    let provider = front.lock.provider.as_deref().ok_or(Problem::NotFound)?;
    let key = front.lock.policy.login().map(|Credentials { login_key, .. }| login_key).ok_or(Problem::NotFound)?;
    Ok((provider, key))
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        let why = error.to_string();
        match error {
            LoginError::Unavailable(_) => Self::Unavailable(format!("{why}. A token can be used at /login meanwhile.")),
            LoginError::Rejected(_) => Self::Unauthorized { challenge: None, why },
            LoginError::NotPermitted(_) => Self::Forbidden(why),
        }
    }
}
