//! The API told in OpenAPI 3.1: derived from the table of routes and from the types that are taken and answered.
//!
//! Every route of the API brings an [`Operation`], made in the `openapi` file beside its handler; verb, path and role
//! come from [`ROUTES`], schemas from the types themselves. [`crate::pages::api`] shows it to people.

pub mod operation;

use actix_web::HttpResponse;
use actix_web::web::Data;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use self::operation::{Group, Operation, Path, method, schemes};
use super::Front;
use super::access::Caller;
use super::html::html;
use super::problem::Problem;
use super::routes::ROUTES;
use crate::pages::api::ApiPage;

/// What holds for the whole API; words between backticks are code, empty lines part paragraphs.
const ABOUT: &str = "\
    Times are Unix seconds with a fraction, unless a field ends in `_ms`; ages and spans are seconds. Sizes are \
    bytes. A figure that is not known is `null`, never 0; where only a lower bound is known, a field beside it says \
    so. Names of streams and consumers are bytes: those that are not UTF-8 are shown as `\\xNN`. In an address every \
    byte of a name that is not a letter, a digit or one of `-._~` is percent-encoded. Fields may be added.

    Who asks says so with `Authorization: Bearer TOKEN` (`MONITOR_AUTH=token`), by name and password (`basic`), or \
    comes by a proxy that says it (`proxy`); with `MONITOR_AUTH=none` nobody is asked. The role that an operation \
    needs stands beside it; each role may do what those below it may: viewer, operator, admin. A GET can be asked as \
    HEAD too.

    An error is `application/problem+json` (RFC 9457) with a stable `type`, whatever was asked; only who accepts \
    `text/html` is shown a page instead. Besides what stands \
    at an operation, every address may answer 404 (there is nothing), 405 (asked in another way), 406 and 500. What \
    is no HTTP at all gets a 400 without a body.

    Lists that can be long take `limit` and answer `next`: what to ask for to go on, `null` at the end. Bodies are \
    JSON of up to 256 kB; the pages send forms with the same names, and are answered with pages. A change is written \
    into the audit before it begins; without Postgres it is refused with 503, and nothing is done.";

/// The document, for an API whose addresses are below `root`.
#[must_use]
pub fn document(root: &str) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.meta_schema = None);
    // What is taken stands where it is taken; what is answered has a name.
    let mut taken = settings.clone().with(|settings| settings.inline_subschemas = true).into_generator();
    let answered = settings.with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut answered = answered.for_serialize().into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let Some(operation) = route.operation else { continue };
        let path = Path::of(route.path);
        let told = operation().told((route.verb, route.needs), &path, &mut taken, &mut answered);
        let entry = paths.entry(path.text).or_insert_with(|| json!({}));
        if let Some(entry) = entry.as_object_mut() {
            entry.insert(method(route.verb).to_owned(), told);
        }
    }
    let tags = Group::ALL.map(|group| {
        let (name, description) = group.name_and_description();
        json!({"name": name, "description": description})
    });
    let mut schemas = answered.take_definitions(true);
    schemas.sort_keys();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Shepherd monitor",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Watches a fleet of workers on Redis streams.",
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": if root.is_empty() { "/" } else { root }}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": schemes()},
    })
}

/// `GET /api/openapi.json`.
pub async fn json(front: Data<Front>) -> HttpResponse {
    HttpResponse::Ok().json(document(front.site.root()))
}

/// How it tells of itself.
pub fn told() -> Operation {
    Operation::new(Group::Monitor, "This document", "The API as OpenAPI 3.1. `/api` shows the same as a page.")
        .answers::<Map<String, Value>>("An OpenAPI document.")
}

/// `GET /api`: the same as a page.
pub async fn page(front: Data<Front>, caller: Caller) -> Result<HttpResponse, Problem> {
    let document = document(front.site.root());
    html(ApiPage { document: &document }.html(&front.site_for(&caller)))
}
