//! The middleware through which every request passes, and what it finds out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ResourceDef, ServiceRequest, ServiceResponse};
use actix_web::guard::{Guard, fn_guard};
use actix_web::http::Method;
use actix_web::http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderMap, LOCATION};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, ResponseError};

use super::caller::Caller;
use super::failures::Failures;
use super::{Needs, Verb, origin};
use crate::access::Policy;
use crate::access::policy::{Presented, Refusal, shortened};
use crate::web::problem::Problem;

/// The cookie of those who logged in by the page.
pub(super) const SESSION_COOKIE: &str = "shepherd_session";

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
    /// Who guessed wrong.
    pub failures: Arc<Failures>,
    /// What all addresses are below: empty, or a path without a slash at its end.
    pub root: String,
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
            origin::same(request.headers())?;
        }
        let Needs::AtLeast(role) = known.needs else { return Ok((place, None)) };
        let caller = self.lock.caller(request.request())?;
        if caller.role < role {
            return Err(Problem::Forbidden(format!("this needs the role {role}; {} is {}", caller.name, caller.role)));
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
        let peer = request.peer_addr().map(|peer| peer.ip());
        let headers = request.headers();
        let said = match &*self.policy {
            Policy::Proxy(proxy) => (only(headers, &proxy.user_header), only(headers, &proxy.role_header)),
            _ => (None, None),
        };
        let cookie = request.cookie(SESSION_COOKIE);
        let presented = Presented {
            peer,
            host: text(headers, HOST.as_str()),
            authorization: text(headers, AUTHORIZATION.as_str()),
            session: cookie.as_ref().map(actix_web::cookie::Cookie::value),
            said,
        };
        match self.policy.who(&presented, unix_seconds()) {
            Ok(known) => Ok(Caller {
                name: known.name,
                role: known.role,
                address: self.address(peer, headers),
                anonymous: known.anonymous,
                can_leave: known.by_session,
            }),
            Err(refusal) => Err(self.refused(refusal, peer)),
        }
    }

    fn refused(&self, refusal: Refusal, peer: Option<IpAddr>) -> Problem {
        let challenge = self.policy.challenge();
        match refusal {
            Refusal::NotKnown => Problem::Unauthorized { challenge, why: "nobody is let in without a login" },
            Refusal::Wrong => match self.failures.note(peer) {
                Ok(()) => Problem::Unauthorized { challenge, why: "what was presented is not known here" },
                Err(too_many) => too_many,
            },
            Refusal::NotTheProxy => {
                Problem::Forbidden("only the proxy in front is let in: see MONITOR_PROXY_TRUSTED".to_owned())
            }
            Refusal::OtherHost => Problem::Forbidden(
                "without a login, this monitor answers to names of its own machine and of SERVER_URL only".to_owned(),
            ),
        }
    }

    /// Where a request comes from; of a trusted proxy, whom it asks for.
    fn address(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> String {
        let by_proxy = match &*self.policy {
            Policy::Proxy(proxy) if proxy.asks_from(peer) => text(headers, "x-forwarded-for"),
            _ => None,
        };
        let last = by_proxy.and_then(|list| list.rsplit(',').next()).map(shortened).filter(|last| !last.is_empty());
        last.unwrap_or_else(|| peer.map(|peer| peer.to_string()).unwrap_or_default())
    }

    /// A browser that asks for a page is sent to log in.
    fn to_login(&self, request: &HttpRequest) -> Option<HttpResponse> {
        self.policy.login()?;
        let accept = text(request.headers(), ACCEPT.as_str()).unwrap_or_default();
        if request.method() != Method::GET || !accept.contains("text/html") {
            return None;
        }
        let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
        let next: String = percent_encoding(wanted);
        let login = format!("{}/login?next={next}", self.root);
        Some(HttpResponse::SeeOther().insert_header((LOCATION, login)).finish())
    }
}

fn percent_encoding(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
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
    let admitted = match &door {
        Some(door) => door.admit(&request),
        None => Err(Problem::Unavailable("nobody guards this door".to_owned())),
    };
    match admitted {
        Ok((place, caller)) => {
            request.extensions_mut().insert(Admitted(place));
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.call(request).await.map(ServiceResponse::map_into_left_body)
        }
        Err(problem) => {
            let login = match (&problem, &door) {
                (Problem::Unauthorized { .. }, Some(door)) => door.lock.to_login(request.request()),
                _ => None,
            };
            let answer = login.unwrap_or_else(|| problem.error_response());
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}
