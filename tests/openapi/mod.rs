//! The OpenAPI document: complete, correct, with working examples and one error format.

mod answers;
mod document;
mod errors;
mod fixtures;
mod page;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;

/// The document, with lookups.
struct Api {
    document: Value,
}

/// An operation of the document.
struct Operation {
    method: String,
    path: String,
    told: Value,
}

impl Operation {
    /// The example request.
    fn sample(&self) -> &str {
        self.told["x-codeSamples"][0]["source"].as_str().unwrap()
    }

    fn id(&self) -> &str {
        self.told["operationId"].as_str().unwrap()
    }

    /// Schema of this response; `None` if the document has none.
    fn schema(&self, status: u16, media: &str) -> Option<&Value> {
        self.told["responses"].get(status.to_string())?.get("content")?.get(media)?.get("schema")
    }
}

impl Api {
    fn new() -> Self {
        Self { document: shepherd_monitor::web::openapi::document("") }
    }

    fn operations(&self) -> impl Iterator<Item = Operation> {
        let paths = self.document["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(|(method, told)| Operation {
                method: method.clone(),
                path: path.clone(),
                told: told.clone(),
            })
        })
    }

    /// `schema` together with the named schemas that it refers to.
    fn whole(&self, schema: &Value) -> Value {
        let mut whole = schema.clone();
        whole["components"] = json!({"schemas": self.document["components"]["schemas"]});
        whole
    }

    /// Differences between `answer` and `schema`, including fields that the schema lacks.
    fn mistakes(&self, schema: &Value, answer: &Value) -> Vec<String> {
        let mut whole = self.whole(schema);
        make_strict(&mut whole, true);
        let validator = jsonschema::draft202012::new(&whole).unwrap();
        validator.iter_errors(answer).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    fn named(&self, name: &str) -> &Value {
        &self.document["components"]["schemas"][name]
    }
}

/// Rejects fields that the schema lacks. For a part of an alternative (`own` is false), the enclosing schema does.
fn make_strict(schema: &mut Value, own: bool) {
    let Some(fields) = schema.as_object_mut() else { return };
    for (name, value) in fields.iter_mut() {
        match name.as_str() {
            "properties" | "schemas" => value.as_object_mut().unwrap().values_mut().for_each(|s| make_strict(s, true)),
            "items" | "additionalProperties" => make_strict(value, true),
            "prefixItems" => value.as_array_mut().unwrap().iter_mut().for_each(|s| make_strict(s, true)),
            "oneOf" | "anyOf" | "allOf" => {
                value.as_array_mut().unwrap().iter_mut().for_each(|s| make_strict(s, false));
            }
            "components" => make_strict(value, false),
            _ => {}
        }
    }
    let has_variants = fields.get("oneOf").is_some_and(|one_of| one_of.to_string().contains("\"properties\""));
    if own && (fields.contains_key("properties") || has_variants) {
        fields.insert("unevaluatedProperties".to_owned(), json!(false));
    }
}

/// Collects the schema locations of all fields for which `answer` has a value.
fn fields_in(api: &Api, schema: &Value, at: &str, answer: &Value, found: &mut BTreeSet<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        return fields_in(api, api.document.pointer(pointer).unwrap(), pointer, answer, found);
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let value = &answer[name];
        if !value.is_null() {
            let at = format!("{at}/properties/{}", name.replace('~', "~0").replace('/', "~1"));
            fields_in(api, schema, &at, value, found);
            found.insert(at);
        }
    }
    if schema["additionalProperties"].is_object() {
        let at = format!("{at}/additionalProperties");
        for value in answer.as_object().into_iter().flatten().map(|(_, value)| value) {
            fields_in(api, &schema["additionalProperties"], &at, value, found);
        }
    }
    if schema["items"].is_object() {
        for value in answer.as_array().into_iter().flatten() {
            fields_in(api, &schema["items"], &format!("{at}/items"), value, found);
        }
    }
    for alternatives in ["oneOf", "anyOf", "allOf"] {
        for (place, part) in schema[alternatives].as_array().into_iter().flatten().enumerate() {
            let fits = part["properties"].as_object().is_none_or(|fields| {
                fields.iter().all(|(name, field)| field.get("const").is_none_or(|word| answer[name] == *word))
            });
            if fits {
                fields_in(api, part, &format!("{at}/{alternatives}/{place}"), answer, found);
            }
        }
    }
}

/// Schema locations of all fields of the named schemas.
fn all_fields(api: &Api) -> BTreeSet<String> {
    fn of(schema: &Value, at: &str, found: &mut BTreeSet<String>) {
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{at}/properties/{}", name.replace('~', "~0").replace('/', "~1"));
            of(schema, &at, found);
            found.insert(at);
        }
        for part in ["items", "additionalProperties"] {
            if schema[part].is_object() {
                of(&schema[part], &format!("{at}/{part}"), found);
            }
        }
        for alternatives in ["oneOf", "anyOf", "allOf"] {
            for (place, part) in schema[alternatives].as_array().into_iter().flatten().enumerate() {
                of(part, &format!("{at}/{alternatives}/{place}"), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    for (name, schema) in api.document["components"]["schemas"].as_object().unwrap() {
        of(schema, &format!("/components/schemas/{name}"), &mut found);
    }
    found
}
