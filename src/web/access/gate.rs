//! Middleware that authenticates and authorizes every request.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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
use super::cookies::SESSION;
use super::failures::{Attempt, Failures, Holder};
use super::security_log::SecurityLog;
use super::sessions::{OpenSession, Sessions};
use super::users::{TokenOwner, Unusable, Users};
use super::{Needs, Verb, origin};
use crate::access::Policy;
use crate::access::address::TrustedProxies;
use crate::access::policy::{Presented, Refusal, Session};
use crate::access::security_events::{SecurityEvent, SecurityKind};
use crate::access::users::{User, UserToken};
use crate::actors::io::Io;
use crate::exposition::counters::Counters;
use crate::identity_provider::IdentityProvider;
use crate::web::AppState;
use crate::web::problem::Problem;
use crate::web::read_limits::{Expense, Turn};
use crate::web::routes::Route;

/// Interval of logging an unreadable `X-Forwarded-For`, seconds.
const REPORT_EVERY: u64 = 600;
/// Maximum length of the description of a denied request, characters.
const MOST_DETAIL: usize = 300;

/// A route of the table, prepared for matching.
struct GatedRoute {
    pattern: ResourceDef,
    verb: Verb,
    needs: Needs,
    expense: Option<Expense>,
}

/// An authorized request.
struct Entry {
    /// Index of its route in the table.
    place: usize,
    /// The caller, unless the route requires none.
    caller: Option<Caller>,
    /// Must wait for a slot of `ReadLimits`.
    expense: Option<Expense>,
}

/// The request contained credentials that were checked, so a rejection is a failed login.
struct Attempted;

/// An authenticated caller without the required role.
struct WithoutRole(Caller);

/// Authentication state, shared by all server threads.
#[derive(Clone)]
pub struct AuthGate {
    /// Authentication mode.
    pub policy: Arc<Policy>,
    /// Proxies whose headers are trusted.
    pub trusted: Arc<TrustedProxies>,
    /// Recent failed logins.
    pub failures: Arc<Failures>,
    /// Identity provider, if users log in there.
    pub provider: Option<Arc<IdentityProvider>>,
    /// Sessions, if this mode has a login page.
    pub sessions: Option<Arc<Sessions>>,
    /// Named users, if there is a secret key.
    pub users: Option<Arc<Users>>,
    /// Access to Postgres, for sessions and users.
    pub io: Io,
    /// Counters for Prometheus.
    pub counters: Arc<Mutex<Counters>>,
    /// The security log.
    pub security: Arc<SecurityLog>,
    /// Path prefix of all routes: empty, or without a trailing slash.
    pub root: String,
    /// `SERVER_URL`.
    pub own: Option<String>,
    /// When an unreadable `X-Forwarded-For` was last logged, Unix seconds.
    pub reported: Arc<AtomicU64>,
}

/// The route table with the authentication state.
pub struct AuthGateLayer {
    routes: Vec<GatedRoute>,
    lock: AuthGate,
}

/// Index of the route that the gate authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Admitted(usize);

/// Matches requests that the gate authorized for the route at this index of the table.
pub fn admitted(place: usize) -> impl Guard {
    fn_guard(move |context| context.req_data().get::<Admitted>() == Some(&Admitted(place)))
}

impl AuthGateLayer {
    /// Prepares these routes.
    #[must_use]
    pub fn new(lock: AuthGate, routes: &[Route]) -> Self {
        let known = |route: &Route| GatedRoute {
            pattern: ResourceDef::new(route.path),
            verb: route.verb,
            needs: route.needs,
            expense: route.expense,
        };
        Self { routes: routes.iter().map(known).collect(), lock }
    }

    /// Route for `path`, which is relative to the root.
    fn route(&self, method: &Method, path: &str) -> Result<(usize, &GatedRoute), Problem> {
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

    /// Authenticates and authorizes a request; the error is the response.
    async fn admit(&self, request: &ServiceRequest) -> Result<Entry, Problem> {
        let (place, known) = self.route(request.method(), request.match_info().unprocessed())?;
        if known.verb != Verb::Read {
            origin::same(request.headers(), self.lock.own.as_deref())?;
        }
        let Needs::AtLeast(role) = known.needs else {
            return Ok(Entry { place, caller: None, expense: None });
        };
        let caller = self.lock.caller(request.request()).await?;
        if caller.role < role {
            let why = format!("this requires the role {role}; {} has the role {}", caller.name, caller.role);
            request.extensions_mut().insert(WithoutRole(caller));
            return Err(Problem::Forbidden(why));
        }
        Ok(Entry { place, caller: Some(caller), expense: known.expense })
    }
}

impl AuthGate {
    /// The authenticated caller.
    ///
    /// # Errors
    /// If the credentials are missing, wrong or not permitted.
    pub async fn caller(&self, request: &HttpRequest) -> Result<Caller, Problem> {
        let headers = request.headers();
        let address = self.client(request);
        let (user, role) = match &*self.policy {
            Policy::Proxy(proxy) => (values(headers, &proxy.user_header), values(headers, &proxy.role_header)),
            _ => (Vec::new(), Vec::new()),
        };
        let session = self.session(request).await;
        let peer = peer_of(request);
        let mut presented = Presented {
            peer,
            by_trusted_proxy: peer.is_some_and(|peer| self.trusted.contains(peer)),
            host: values(headers, HOST.as_str()),
            authorization: values(headers, AUTHORIZATION.as_str()),
            session: session.as_ref().map(|(session, _)| session),
            owner: None,
            user,
            role,
        };
        let owner = match self.policy.user_token(&presented) {
            Some(token) => self.owner(&token, &Attempt { address, account: None }).await?,
            None => None,
        };
        presented.owner = owner.as_ref();
        let known = self.policy.who(&presented);
        let by_secret = match &known {
            Ok(known) => self.policy.has_tokens() && !known.by_session,
            Err(refusal) => matches!(refusal, Refusal::Wrong(_)),
        };
        let mut is_first_use = false;
        if by_secret {
            let attempt = Attempt { address, account: self.policy.account(&presented) };
            request.extensions_mut().insert(Attempted);
            let holder = known.as_ref().ok().map(|known| match &owner {
                Some(user) => Holder::User(user.token_id.clone()),
                None => Holder::Role(known.role),
            });
            is_first_use = self.settle(&attempt, holder).await?;
        }
        match known {
            Ok(known) => {
                if let Some((_, open)) = session.filter(|_| known.by_session) {
                    request.extensions_mut().insert(open);
                }
                if let (Some(user), Some(users)) = (owner, &self.users) {
                    request.extensions_mut().insert(TokenOwner { users: Arc::clone(users), user });
                }
                let caller = Caller {
                    name: known.name,
                    role: known.role,
                    address: address.map(|address| address.to_string()).unwrap_or_default(),
                    anonymous: known.anonymous,
                    can_leave: known.by_session,
                };
                if is_first_use {
                    self.security.note(SecurityEvent::of(SecurityKind::TokenFirstUse, &caller, String::new()));
                }
                Ok(caller)
            }
            Err(refusal) => Err(self.refused(refusal)),
        }
    }

    /// Named user with this token.
    ///
    /// # Errors
    /// If the token is expired, or cannot be verified.
    pub(super) async fn owner(&self, token: &UserToken, attempt: &Attempt) -> Result<Option<User>, Problem> {
        let Some(users) = &self.users else { return Ok(None) };
        if users.must_verify(token) {
            self.failures.may_verify(attempt)?;
        }
        match users.owner(&self.io, token).await {
            Ok(user) => Ok(Some(user)),
            Err(Unusable::Unknown) => Ok(None),
            Err(Unusable::Expired(user)) => Err(Problem::Unauthorized {
                challenge: self.policy.challenge(),
                why: format!(
                    "the token of {} expired: ask for a new one (shepherd-monitor users renew {})",
                    user.name, user.name
                ),
            }),
            Err(Unusable::Unverifiable(trouble)) => {
                Err(Problem::Unavailable(format!("the token cannot be verified: {}", trouble.detail)))
            }
        }
    }

    /// Records a login attempt, and delays it after too many failures. Returns whether the credentials were valid for
    /// the first time at this address within a day.
    pub(super) async fn settle(&self, attempt: &Attempt, holder: Option<Holder>) -> Result<bool, Problem> {
        self.settle_with(attempt, holder, String::new()).await
    }

    /// [`Self::settle`], with why the credentials are invalid.
    async fn settle_with(&self, attempt: &Attempt, holder: Option<Holder>, detail: String) -> Result<bool, Problem> {
        let is_wrong = holder.is_none();
        let settled = self.failures.settle(attempt, holder).await;
        if is_wrong || settled.is_err() {
            let kind = if settled.is_ok() { SecurityKind::FailedLogin } else { SecurityKind::Throttled };
            let user = attempt.account.clone().unwrap_or_default();
            self.security.note(SecurityEvent { kind, user, role: None, address: attempt.address, detail });
        }
        for many in self.failures.take_many() {
            self.security.report_failures(&many);
        }
        settled
    }

    /// Records that the provider's answer to a login is invalid.
    ///
    /// # Errors
    /// If there were too many failures.
    pub(super) async fn settle_rejected(
        &self,
        request: &HttpRequest,
        attempt: &Attempt,
        why: &str,
    ) -> Result<(), Problem> {
        request.extensions_mut().insert(Attempted);
        self.settle_with(attempt, None, why.chars().take(MOST_DETAIL).collect()).await.map(drop)
    }

    /// Records that a request was denied. A failed login is recorded by [`Self::settle`].
    fn note_denied<R: HttpMessage>(&self, request: &R, of: &HttpRequest, problem: &Problem) {
        let extensions = request.extensions();
        let why = match problem {
            Problem::Forbidden(why) => why,
            Problem::Unauthorized { why, .. } if !extensions.contains::<Attempted>() => why,
            _ => return,
        };
        let caller = extensions.get::<Caller>().or(extensions.get::<WithoutRole>().map(|WithoutRole(caller)| caller));
        let detail = format!("{} {}: {why}", of.method(), of.path()).chars().take(MOST_DETAIL).collect();
        let kind = SecurityKind::Denied;
        let event = match caller {
            Some(caller) => SecurityEvent::of(kind, caller, detail),
            None => SecurityEvent { kind, user: String::new(), role: None, address: self.client(of), detail },
        };
        drop(extensions);
        self.security.note(event);
    }

    /// Open session of the request's cookie.
    async fn session(&self, request: &HttpRequest) -> Option<(Session, OpenSession)> {
        let sessions = self.sessions.as_ref()?;
        for id in self.session_ids(request) {
            if let Some(found) = sessions.find(&self.io, &id).await {
                return Some(found);
            }
        }
        None
    }

    /// Values of the session cookie.
    pub(super) fn session_ids(&self, request: &HttpRequest) -> Vec<String> {
        let encrypted = self.own.as_deref().is_some_and(|own| own.starts_with("https://"));
        SESSION.values(request.headers(), encrypted, &self.root)
    }

    fn refused(&self, refusal: Refusal) -> Problem {
        let challenge = self.policy.challenge();
        match refusal {
            Refusal::NotKnown(why) | Refusal::Wrong(why) => Problem::Unauthorized { challenge, why },
            Refusal::NotAllowed(why) => Problem::Forbidden(why),
        }
    }

    /// Client address; behind a trusted proxy, the address that it forwards for.
    pub(super) fn client(&self, request: &HttpRequest) -> Option<IpAddr> {
        let said: Vec<&[u8]> = request.headers().get_all("x-forwarded-for").map(HeaderValue::as_bytes).collect();
        let peer = peer_of(request)?;
        let said = said.join(&b","[..]);
        let (client, unreadable) = self.trusted.client(peer, &said);
        if let Some(hop) = unreadable {
            self.report_unreadable(client, hop);
        }
        Some(client)
    }

    /// Logs, at most once per [`REPORT_EVERY`], that a trusted proxy forwards no client address.
    fn report_unreadable(&self, proxy: IpAddr, hop: &[u8]) {
        let now = unix_seconds();
        let last = self.reported.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) < REPORT_EVERY {
            self.reported.store(last, Ordering::Relaxed);
            return;
        }
        let held: String = String::from_utf8_lossy(hop).chars().take(80).collect();
        tracing::warn!(
            "X-Forwarded-For held {held:?}, which is no address: the requests count as those of the proxy {proxy}; it must send \
             the address of the client"
        );
    }

    /// Redirects a browser that requests a page to the login page.
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

/// The same error as an HTML page, for browsers.
fn page_about(problem: &Problem, request: &HttpRequest) -> Option<HttpResponse> {
    let front = request.app_data::<Data<AppState>>().filter(|_| looks_with_a_browser(request))?;
    let caller = request.extensions().get::<Caller>().cloned();
    let html = match &caller {
        Some(caller) => front.site_for(caller).problem(problem.title(), &problem.to_string()),
        None => front.site.problem(problem.title(), &problem.to_string()),
    };
    let mut answer = problem.error_response();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    html.ok().map(|html| answer.set_body(BoxBody::new(html)))
}

pub(super) fn percent_encoding(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Peer address. An IPv4 client on an IPv6 socket has its IPv4 address.
fn peer_of(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|peer| peer.ip().to_canonical())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// All values of a header.
fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers.get_all(name).map(HeaderValue::as_bytes).collect()
}

/// Current Unix time, seconds.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Waits for a slot, if the request is expensive.
async fn turn_of(request: &ServiceRequest, entry: &Entry) -> Result<Option<Turn>, Problem> {
    let (Some(caller), Some(expense)) = (&entry.caller, entry.expense) else { return Ok(None) };
    let Some(front) = request.app_data::<Data<AppState>>() else { return Ok(None) };
    front.read_limits.turn(caller, expense).await.map(Some)
}

/// Middleware: forwards authorized requests, responds to others with the error.
///
/// # Errors
/// Those of the handler.
pub async fn gate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let door = request.app_data::<Data<AuthGateLayer>>().cloned();
    let too_many = request.request().conn_data::<Counted>().is_some_and(|counted| counted.beyond);
    let admitted = match &door {
        _ if too_many => Err(Problem::TooManyConnections),
        Some(door) => door.admit(&request).await,
        None => Err(Problem::Unavailable("access control is not configured".to_owned())),
    };
    let admitted = match admitted {
        Ok(entry) => turn_of(&request, &entry).await.map(|turn| (entry, turn)),
        Err(problem) => Err(problem),
    };
    match admitted {
        Ok((Entry { place, caller, .. }, _turn)) => {
            request.extensions_mut().insert(Admitted(place));
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            let answer = next.call(request).await?;
            let problem = answer.response().error().and_then(actix_web::Error::as_error::<Problem>);
            if let (Some(problem), Some(door)) = (problem, &door) {
                door.lock.note_denied(answer.request(), answer.request(), problem);
            }
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
            if let Some(door) = door.as_ref().filter(|_| login.is_none()) {
                door.lock.note_denied(&request, request.request(), &problem);
            }
            let page = || page_about(&problem, request.request());
            let mut answer = login.or_else(page).unwrap_or_else(|| problem.error_response());
            if too_many {
                answer.head_mut().set_connection_type(ConnectionType::Close);
            }
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}
