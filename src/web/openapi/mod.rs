//! The OpenAPI 3.1 document, derived from the route table and from the request and response types.
//!
//! Every API route provides an [`Operation`], built in the `openapi` file next to its handler. Method, path and role
//! come from [`ROUTES`], schemas from the types. [`crate::pages::api`] renders the document as a page.

pub mod operation;

use actix_web::HttpResponse;
use actix_web::web::Data;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use self::operation::{Group, Operation, Path, method, schemes};
use super::AppState;
use super::access::Caller;
use super::html::html;
use super::problem::Problem;
use super::routes::ROUTES;
use crate::pages::api::ApiPage;

/// Description of the whole API. Backticks mark code; empty lines separate paragraphs.
const ABOUT: &str = "\
    Times are fractional Unix seconds unless the field name ends in `_ms`; ages and durations are seconds; sizes \
     are bytes. Unknown values are `null`, never 0; where only a lower bound is known, a separate field says so. \
     Names of streams and consumers are byte strings: bytes that are not UTF-8 are shown as `\\xNN`. In URLs, \
     percent-encode every byte of a name except letters, digits and `-._~`. Clients must ignore unknown fields; \
     new ones may be added.

    Authentication: `Authorization: Bearer TOKEN` (`MONITOR_AUTH=token` or `oidc`), user name and password (`basic`), or \
     headers set by a trusted proxy (`proxy`); with `MONITOR_AUTH=none` requests are anonymous. Each operation \
     lists the role it requires. Roles are ordered: viewer, operator, admin; each includes the ones before it. \
     Every GET also accepts HEAD.

    Errors are `application/problem+json` (RFC 9457) with a stable `type`; clients that accept `text/html` get an \
     HTML page instead. In addition to the responses listed for an operation, every path may return 404 (not \
     found), 405 (method not allowed), 406 and 500. Malformed HTTP gets a 400 without a body.

    Paginated lists take `limit` and return `next`, the cursor of the next page (`null` on the last page). Request \
     bodies are JSON of up to 256 kB; HTML forms with the same field names are accepted and answered with pages. \
     Every change is recorded in the audit log before it starts; if Postgres is unavailable, it is rejected with \
     503 and has no effect.";

/// The document, for an API served below `root`.
#[must_use]
pub fn document(root: &str) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.meta_schema = None);
    // Request types are inlined; response types become named schemas.
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
            "summary": "Monitoring for workers on Redis streams.",
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
pub async fn json(front: Data<AppState>) -> HttpResponse {
    HttpResponse::Ok().json(document(front.site.root()))
}

/// OpenAPI description of the document itself.
pub fn told() -> Operation {
    Operation::new(
        Group::Monitor,
        "This document",
        "The API as an OpenAPI 3.1 document. `/api` shows it as a \
     page.",
    )
    .answers::<Map<String, Value>>("An OpenAPI document.")
}

/// `GET /api`: the document as a page.
pub async fn page(front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let document = document(front.site.root());
    html(ApiPage { document: &document }.html(&front.site_for(&caller)))
}
