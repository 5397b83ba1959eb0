//! The document itself: complete, derived from the route table, valid.

use std::collections::BTreeSet;

use shepherd_monitor::web::access::{Needs, Verb};
use shepherd_monitor::web::openapi::document;
use shepherd_monitor::web::routes::ROUTES;

use super::*;

/// Whether the document covers the path. Pages, and requests that only pages send, are omitted.
fn is_for_programs(path: &str) -> bool {
    path.starts_with("/api/") || ["/ws", "/livez", "/readyz", "/metrics", "/-/reload"].contains(&path)
}

#[test]
fn the_document_contains_exactly_the_api_routes_with_their_roles() {
    let api = Api::new();
    let told: BTreeSet<(String, String)> =
        api.operations().map(|operation| (operation.method.clone(), operation.path.clone())).collect();
    let mut expected = BTreeSet::new();
    for route in ROUTES {
        assert_eq!(
            route.operation.is_some(),
            is_for_programs(route.path),
            "{}: a route for programs says how the API tells it, a page does not",
            route.path
        );
        if route.operation.is_none() {
            continue;
        }
        // `{name:.*}` becomes `{name}`.
        let path = route.path.split(":.").enumerate().map(|(place, part)| match part.split_once('}') {
            Some((_, after)) if place > 0 => format!("}}{after}"),
            _ => part.to_owned(),
        });
        let (method, path) = (if route.verb == Verb::Change { "post" } else { "get" }, path.collect::<String>());
        let operation = &api.document["paths"][&path][method];
        assert!(operation.is_object(), "{method} {path} is not told");
        let roles = match route.needs {
            Needs::Nobody => json!([]),
            Needs::AtLeast(role) => json!([{"bearer": [role]}, {"basic": [role]}, {"session": [role]}]),
        };
        assert_eq!(operation["security"], roles, "{path}");
        expected.insert((method.to_owned(), path));
    }
    assert_eq!(told, expected);
    assert!(told.len() > 30, "{told:?}");
}

#[tokio::test]
async fn it_is_served_with_the_root_path() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let (redis_url, database_url) = (redis.url(), database.url());
    let settings = [("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", &database_url), ("MONITOR_ROOT_PATH", "/m")];
    let monitor = Monitor::start(&settings).await;
    for path in ["/m/api/openapi.json", "/api/openapi.json"] {
        let (status, body) = monitor.get(path).await;
        assert_eq!(status, 200);
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), document("/m"), "{path}");
    }
    assert_eq!(document("/m")["servers"], json!([{"url": "/m"}]));
    assert_eq!(document("")["servers"], json!([{"url": "/"}]));
}

/// Calls `found` with each schema in `value` and its location.
fn schemas(value: &Value, at: &str, found: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = format!("{at}/{name}");
                if name == "schema"
                    || name == "x-message"
                    || at.starts_with("/components/schemas/") && at.matches('/').count() == 3
                {
                    found(&at, value);
                }
                schemas(value, &at, found);
            }
        }
        Value::Array(values) => {
            for (place, value) in values.iter().enumerate() {
                schemas(value, &format!("{at}/{place}"), found);
            }
        }
        _ => {}
    }
}

/// Errors in an OpenAPI 3.1 document, as far as this monitor uses it: dangling references, missing required fields,
/// invalid schemas.
fn mistakes(document: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let api = Api { document: document.clone() };
    for (name, fields) in [("", &["openapi", "info", "paths"][..]), ("/info", &["title", "version"])] {
        for field in fields {
            if document.pointer(name).is_none_or(|part| part.get(*field).is_none()) {
                wrong.push(format!("{name}/{field} is missing"));
            }
        }
    }
    let tags: Vec<&Value> = document["tags"].as_array().into_iter().flatten().map(|tag| &tag["name"]).collect();
    let mut ids = BTreeSet::new();
    for Operation { method, path, told, .. } in api.operations() {
        let at = format!("{method} {path}");
        if !ids.insert(told["operationId"].to_string()) {
            wrong.push(format!("{at}: its operationId is another's"));
        }
        for text in ["operationId", "summary", "description"] {
            if told[text].as_str().is_none_or(str::is_empty) {
                wrong.push(format!("{at}: no {text}"));
            }
        }
        if !told["tags"].as_array().is_some_and(|own| !own.is_empty() && own.iter().all(|tag| tags.contains(&tag))) {
            wrong.push(format!("{at}: tags {}", told["tags"]));
        }
        let mut parameters = BTreeSet::new();
        for parameter in told["parameters"].as_array().into_iter().flatten() {
            let (name, place) = (parameter["name"].as_str().unwrap_or_default(), &parameter["in"]);
            if !parameters.insert((place.to_string(), name)) {
                wrong.push(format!("{at}: {name} is there twice"));
            }
            if parameter["description"].as_str().is_none_or(str::is_empty) || !parameter["schema"].is_object() {
                wrong.push(format!("{at}: {name} has no description or schema"));
            }
            if place == "path"
                && (parameter["required"] != true || parameter["example"].as_str().is_none_or(str::is_empty))
            {
                wrong.push(format!("{at}: {name} is not required or has no example"));
            }
        }
        let in_path: BTreeSet<&str> =
            path.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0)).collect();
        let told_in_path: BTreeSet<&str> =
            parameters.iter().filter(|(place, _)| place == "\"path\"").map(|(_, name)| *name).collect();
        if in_path != told_in_path {
            wrong.push(format!("{at}: {told_in_path:?}"));
        }
        let answers = told["responses"].as_object().cloned().unwrap_or_default();
        if !answers.keys().any(|status| status.starts_with(['1', '2'])) {
            wrong.push(format!("{at}: no answer"));
        }
        for (status, answer) in &answers {
            if status.parse().is_ok_and(|status: u16| (100..600).contains(&status))
                && answer["description"].as_str().is_some_and(|text| !text.is_empty())
            {
                continue;
            }
            wrong.push(format!("{at}: the answer {status}"));
        }
        for scheme in told["security"].as_array().into_iter().flatten().flat_map(|one| one.as_object().unwrap().keys())
        {
            if document["components"]["securitySchemes"].get(scheme).is_none() {
                wrong.push(format!("{at}: {scheme} is no security scheme"));
            }
        }
    }
    let mut used = BTreeSet::new();
    schemas(document, "", &mut |at, schema| {
        if let Err(error) = jsonschema::draft202012::meta::validate(schema) {
            wrong.push(format!("{at} is no schema: {error}"));
        }
        let text = schema.to_string();
        for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)) {
            used.insert(reference.to_owned());
            if reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer)).is_none() {
                wrong.push(format!("{at}: {reference} leads nowhere"));
            }
        }
    });
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        if !used.contains(&format!("#/components/schemas/{name}")) {
            wrong.push(format!("nobody uses {name}"));
        }
    }
    wrong
}

#[test]
fn it_is_valid_and_the_check_detects_errors() {
    let sound = document("");
    assert_eq!(mistakes(&sound), Vec::<String>::new());
    let broken = |pointer: &str, value: Value| {
        let mut broken = sound.clone();
        *broken.pointer_mut(pointer).unwrap_or_else(|| panic!("nothing at {pointer}")) = value;
        mistakes(&broken)
    };
    for (pointer, value, says) in [
        ("/paths/~1api~1alerts/get/operationId", json!("get_snapshot"), "another's"),
        ("/paths/~1api~1alerts/get/tags", json!(["Nothing"]), "tags"),
        ("/paths/~1api~1alerts/get/parameters", json!([{"name": "x", "in": "path"}]), "x is not required"),
        ("/paths/~1api~1alerts/get/security", json!([{"key": []}]), "no security scheme"),
        ("/paths/~1api~1alerts/get/responses", json!({"4xx": {"description": ""}}), "no answer"),
        ("/components/schemas/Event/properties/ts", json!({"type": "float"}), "no schema"),
        ("/components/schemas/Events/properties/events/items", json!({"$ref": "#/components/schemas/X"}), "nowhere"),
    ] {
        let found = broken(pointer, value);
        assert!(found.iter().any(|mistake| mistake.contains(says)), "{pointer}: {found:?}");
    }
}

#[test]
fn fields_have_descriptions() {
    let document = document("");
    let mut silent = Vec::new();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        if schema["description"].as_str().is_none_or(str::is_empty) {
            silent.push(name.clone());
        }
        let variants = schema["oneOf"].as_array().into_iter().flatten();
        for part in std::iter::once(schema).chain(variants) {
            // The description of a variant covers its fields.
            let is_said = part != schema && part["description"].is_string();
            for (field, told) in part["properties"].as_object().into_iter().flatten() {
                let text = told["description"].as_str().unwrap_or_default();
                // Intra-doc links work only in the source.
                if text.is_empty() && !is_said || text.contains("[`") {
                    silent.push(format!("{name}.{field}: {text}"));
                }
            }
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}
