//! The middleware through which every request passes, and what it finds out.

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ResourceDef, ServiceRequest, ServiceResponse};
use actix_web::guard::{Guard, fn_guard};
use actix_web::http::Method;
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, ResponseError};

use super::caller::Caller;
use super::{Needs, Role, Verb, origin};
use crate::web::problem::Problem;

/// A route as the gate sees it.
struct Known {
    pattern: ResourceDef,
    verb: Verb,
    needs: Needs,
}

/// The table of routes, ready to be asked, and who is who.
pub struct Door {
    routes: Vec<Known>,
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
    pub fn new(routes: impl IntoIterator<Item = (&'static str, Verb, Needs)>) -> Self {
        let known = |(pattern, verb, needs)| Known { pattern: ResourceDef::new(pattern), verb, needs };
        Self { routes: routes.into_iter().map(known).collect() }
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
        let caller = Self::caller(request)?;
        if caller.role < role {
            return Err(Problem::Forbidden(format!("this needs the role {role}; {} is {}", caller.name, caller.role)));
        }
        Ok((place, Some(caller)))
    }

    fn caller(request: &ServiceRequest) -> Result<Caller, Problem> {
        let address = request.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
        Ok(Caller { name: "anybody".to_owned(), role: Role::Admin, address, anonymous: true, can_leave: false })
    }
}

/// Lets a request in, or answers why not.
///
/// # Errors
/// Those of the handler.
pub async fn gate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let admitted = match request.app_data::<Data<Door>>() {
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
        Err(problem) => Ok(request.into_response(problem.error_response()).map_into_right_body()),
    }
}
