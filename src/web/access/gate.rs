//! The middleware through which every request passes, and what it finds out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ResourceDef, ServiceRequest, ServiceResponse};
use actix_web::guard::{Guard, fn_guard};
use actix_web::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION};
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, ResponseError};

use super::caller::Caller;
use super::connections::Counted;
use super::failures::Failures;
use super::{Needs, Verb, origin};
use crate::access::Policy;
use crate::access::address::TrustedProxies;
use crate::access::policy::{Presented, Refusal};
use crate::web::Front;
use crate::web::problem::Problem;

/// The cookie of those who logged in by the page.
pub(in crate::web) const SESSION_COOKIE: &str = "shepherd_session";

/// A route as the gate sees it.
struct Known {
    pattern: ResourceDef,
    verb: Verb,
    needs: Needs,
}

/// How it is found out who asks, and who guessed wrong lately; shared by all doors.
#[derive(Clone)]
pub struct Lock {
    /// How.
    pub policy: Arc<Policy>,
    /// The proxies that are believed about where requests come from.
    pub trusted: Arc<TrustedProxies>,
    /// Who guessed wrong.
    pub failures: Arc<Failures>,
    /// What all addresses are below: empty, or a path without a slash at its end.
    pub root: String,
    /// `SERVER_URL`.
    pub own: Option<String>,
}

/// The table of routes, ready to be asked, and who is who.
pub struct Door {
    routes: Vec<Known>,
    lock: Lock,
}

/// The route that a request was let in to: its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Admitted(usize);

/// Holds for requests that the gate has let in to the route at this place in the table.
pub fn admitted(place: usize) -> impl Guard {
    fn_guard(move |context| context.req_data().get::<Admitted>() == Some(&Admitted(place)))
}

impl Door {
    /// A door to these routes: pattern, how it is asked, what it asks.
    #[must_use]
    pub fn new(lock: Lock, routes: impl IntoIterator<Item = (&'static str, Verb, Needs)>) -> Self {
        let known = |(pattern, verb, needs)| Known { pattern: ResourceDef::new(pattern), verb, needs };
        Self { routes: routes.into_iter().map(known).collect(), lock }
    }

    /// The route for `path`, which is below the root.
    fn route(&self, method: &Method, path: &str) -> Result<(usize, &Known), Problem> {
        let mut here = self.routes.iter().enumerate().filter(|(_, known)| known.pattern.is_match(path)).peekable();
        if here.peek().is_none() {
            return Err(Problem::NotFound);
        }
        let fits = |verb| match verb {
            Verb::Read => method == Method::GET || method == Method::HEAD,
            Verb::Socket => method == Method::GET,
            Verb::Change => method == Method::POST,
        };
        let mut allowed = Verb::Read;
        for (place, known) in here {
            if fits(known.verb) {
                return Ok((place, known));
            }
            allowed = known.verb;
        }
        Err(Problem::WrongMethod(if allowed == Verb::Change { "POST" } else { "GET" }))
    }

    /// Who asks, and for which route; or why not.
    fn admit(&self, request: &ServiceRequest) -> Result<(usize, Option<Caller>), Problem> {
        let (place, known) = self.route(request.method(), request.match_info().unprocessed())?;
        if known.verb != Verb::Read {
            origin::same(request.headers(), self.lock.own.as_deref())?;
        }
        let Needs::AtLeast(role) = known.needs else { return Ok((place, None)) };
        let caller = self.lock.caller(request.request())?;
        if caller.role < role {
            return Err(Problem::Forbidden(format!(
                "this requires the role {role}; {} has the role {}",
                caller.name, caller.role
            )));
        }
        Ok((place, Some(caller)))
    }
}

impl Lock {
    /// Who asks.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn caller(&self, request: &HttpRequest) -> Result<Caller, Problem> {
        let headers = request.headers();
        let client = self.client(request);
        let said = match &*self.policy {
            Policy::Proxy(proxy) => (only(headers, &proxy.user_header), only(headers, &proxy.role_header)),
            _ => (None, None),
        };
        let cookie = request.cookie(SESSION_COOKIE);
        let presented = Presented {
            by_trusted_proxy: peer_of(request).is_some_and(|peer| self.trusted.contains(peer)),
            host: text(headers, HOST.as_str()),
            authorization: text(headers, AUTHORIZATION.as_str()),
            session: cookie.as_ref().map(actix_web::cookie::Cookie::value),
            said,
        };
        match self.policy.who(&presented, unix_seconds()) {
            Ok(known) => Ok(Caller {
                name: known.name,
                role: known.role,
                address: client.map(|client| client.to_string()).unwrap_or_default(),
                anonymous: known.anonymous,
                can_leave: known.by_session,
            }),
            Err(refusal) => Err(self.refused(refusal, client)),
        }
    }

    fn refused(&self, refusal: Refusal, client: Option<IpAddr>) -> Problem {
        let challenge = self.policy.challenge();
        match refusal {
            Refusal::NotKnown => Problem::Unauthorized { challenge, why: "authentication required" },
            Refusal::Wrong => match self.failures.note(client) {
                Ok(()) => Problem::Unauthorized { challenge, why: "invalid credentials" },
                Err(too_many) => too_many,
            },
            Refusal::NotTheProxy => Problem::Forbidden(
                "only requests via a trusted proxy are accepted; see MONITOR_PROXY_TRUSTED".to_owned(),
            ),
            Refusal::OtherHost => Problem::Forbidden(
                "without authentication, only requests to localhost names and the host of SERVER_URL are accepted"
                    .to_owned(),
            ),
        }
    }

    /// Where a request comes from; of a trusted proxy, whom it asks for.
    pub(super) fn client(&self, request: &HttpRequest) -> Option<IpAddr> {
        let said = request.headers().get_all("x-forwarded-for").filter_map(|value| value.to_str().ok());
        let said = said.collect::<Vec<_>>().join(",");
        peer_of(request).map(|peer| self.trusted.client(peer, Some(&said)))
    }

    /// A browser that asks for a page is sent to log in.
    fn to_login(&self, request: &HttpRequest) -> Option<HttpResponse> {
        self.policy.login()?;
        if request.method() != Method::GET || !looks_with_a_browser(request) {
            return None;
        }
        let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
        let next: String = percent_encoding(wanted);
        let login = format!("{}/login?next={next}", self.root);
        Some(HttpResponse::SeeOther().insert_header((LOCATION, login)).finish())
    }
}

fn looks_with_a_browser(request: &HttpRequest) -> bool {
    text(request.headers(), ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/html"))
}

/// The same answer with a page for a body, for whoever looks with a browser.
fn page_about(problem: &Problem, request: &HttpRequest) -> Option<HttpResponse> {
    let front = request.app_data::<Data<Front>>().filter(|_| looks_with_a_browser(request))?;
    let caller = request.extensions().get::<Caller>().cloned();
    let html = match &caller {
        Some(caller) => front.site_for(caller).problem(problem.title(), &problem.to_string()),
        None => front.site.problem(problem.title(), &problem.to_string()),
    };
    let mut answer = problem.error_response();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    html.ok().map(|html| answer.set_body(BoxBody::new(html)))
}

fn percent_encoding(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn peer_of(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|peer| peer.ip())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A header that is there once. Of two, one is the client's own.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name);
    let one = all.next()?;
    if all.next().is_some() { None } else { one.to_str().ok() }
}

/// Now, on the wall.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lets a request in, or answers why not.
///
/// # Errors
/// Those of the handler.
pub async fn gate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let door = request.app_data::<Data<Door>>().cloned();
    let too_many = request.request().conn_data::<Counted>().is_some_and(|counted| counted.beyond);
    let admitted = match &door {
        _ if too_many => Err(Problem::TooManyConnections),
        Some(door) => door.admit(&request),
        None => Err(Problem::Unavailable("access control is not configured".to_owned())),
    };
    match admitted {
        Ok((place, caller)) => {
            request.extensions_mut().insert(Admitted(place));
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            let answer = next.call(request).await?;
            let problem = answer.response().error().and_then(actix_web::Error::as_error::<Problem>);
            match problem.and_then(|problem| page_about(problem, answer.request())) {
                Some(page) => Ok(answer.into_response(page).map_into_right_body()),
                None => Ok(answer.map_into_left_body()),
            }
        }
        Err(problem) => {
            let login = match (&problem, &door) {
                (Problem::Unauthorized { .. }, Some(door)) => door.lock.to_login(request.request()),
                _ => None,
            };
            let page = || page_about(&problem, request.request());
            let mut answer = login.or_else(page).unwrap_or_else(|| problem.error_response());
            if too_many {
                answer.head_mut().set_connection_type(ConnectionType::Close);
            }
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}
