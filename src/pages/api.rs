//! The API page, rendered from the OpenAPI document.
//!
//! The document is the only input, so the page cannot deviate from it.

use serde::Serialize;
use serde_json::Value;

use super::site::{Head, Site};
use super::templates::PagesError;

/// HTTP methods, in display order.
const METHODS: [&str; 2] = ["get", "post"];
/// Prefix of references to named schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// Data of the page.
#[derive(Debug)]
pub struct ApiPage<'a> {
    /// OpenAPI document.
    pub document: &'a Value,
}

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    version: &'a str,
    about: Vec<Prose>,
    groups: Vec<Group<'a>>,
    problems: Vec<Choice>,
    types: Vec<Type<'a>>,
}

/// Text with inline code.
type Prose = Vec<Piece>;

#[derive(Debug, PartialEq, Serialize)]
struct Piece {
    code: bool,
    text: String,
}

#[derive(Serialize)]
struct Group<'a> {
    name: &'a str,
    id: String,
    description: Prose,
    operations: Vec<Operation<'a>>,
}

#[derive(Serialize)]
struct Operation<'a> {
    id: &'a str,
    method: String,
    path: &'a str,
    summary: &'a str,
    description: Prose,
    /// Required role; empty without authentication.
    role: &'a str,
    fields: Vec<Field>,
    sample: &'a str,
    answers: Vec<Answer>,
    errors: Vec<Answer>,
    message: Option<Vec<Word>>,
}

/// A parameter, or a field of a type.
#[derive(Serialize)]
struct Field {
    name: String,
    /// `in the address`, `in the body`, or empty for a field of a type.
    place: &'static str,
    required: bool,
    kind: Vec<Word>,
    limits: String,
    description: Prose,
    choices: Vec<Choice>,
}

/// A part of a type description, optionally linked to a type.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Word {
    text: String,
    href: Option<String>,
}

/// An enum value of a field.
#[derive(Debug, PartialEq, Serialize)]
struct Choice {
    value: String,
    meaning: Prose,
}

#[derive(Serialize)]
struct Answer {
    status: String,
    description: Prose,
    kinds: Vec<Media>,
}

#[derive(Serialize)]
struct Media {
    media: String,
    kind: Vec<Word>,
}

#[derive(Serialize)]
struct Type<'a> {
    name: &'a str,
    description: Prose,
    fields: Vec<Field>,
    choices: Vec<Choice>,
    variants: Vec<Variant>,
    /// Type description, for types without fields.
    kind: Vec<Word>,
}

/// A variant of a type.
#[derive(Serialize)]
struct Variant {
    description: Prose,
    fields: Vec<Field>,
}

impl ApiPage<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("API");
        let info = at(self.document, "info");
        let schemas = at(at(self.document, "components"), "schemas");
        let view = View {
            head: Head::of(&site.environment, (&site.pages, "/api"), &title, &["shell.js"], None),
            version: text(info, "version"),
            about: text(info, "description").split("\n\n").map(prose).collect(),
            groups: self.groups(),
            problems: choices(at(at(at(schemas, "Problem"), "properties"), "type")),
            types: members(schemas).map(|(name, schema)| type_of(name, schema)).collect(),
        };
        site.pages.render("pages/api", &view)
    }

    fn groups(&self) -> Vec<Group<'_>> {
        let all: Vec<(&str, Operation<'_>)> = members(at(self.document, "paths"))
            .flat_map(|(path, item)| {
                METHODS.into_iter().filter_map(move |method| Some((path, method, item.get(method)?)))
            })
            .map(|(path, method, spec)| (item(at(spec, "tags")), operation(path, method, spec)))
            .collect();
        let mut all: Vec<_> = all.into_iter().map(Some).collect();
        let tags = at(self.document, "tags").as_array().into_iter().flatten();
        tags.map(|tag| {
            let name = text(tag, "name");
            let of_it = all.iter_mut().filter(|one| one.as_ref().is_some_and(|(tag, _)| *tag == name));
            Group {
                name,
                id: format!("group-{}", name.to_lowercase()),
                description: prose(text(tag, "description")),
                operations: of_it.filter_map(Option::take).map(|(_, operation)| operation).collect(),
            }
        })
        .filter(|group| !group.operations.is_empty())
        .collect()
    }
}

/// Returns the member `name`, or `null`.
fn at<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    at(value, name).as_str().unwrap_or_default()
}

/// Returns the first string of a list.
fn item(list: &Value) -> &str {
    list.get(0).and_then(Value::as_str).unwrap_or_default()
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

/// Splits text at backticks; every second part is code.
fn prose(text: &str) -> Prose {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let parts = text.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(place, part)| Piece { code: place % 2 == 1, text: part.to_owned() })
        .collect()
}

fn operation<'a>(path: &'a str, method: &'static str, spec: &'a Value) -> Operation<'a> {
    let parameters = at(spec, "parameters").as_array().into_iter().flatten().map(|parameter| {
        let required = at(parameter, "required") == true;
        field(text(parameter, "name"), "in the path", required, at(parameter, "schema"), parameter)
    });
    let body = at(at(at(at(spec, "requestBody"), "content"), "application/json"), "schema");
    let answers = members(at(spec, "responses")).map(|(status, spec)| Answer {
        status: status.to_owned(),
        description: prose(text(spec, "description")),
        kinds: members(at(spec, "content"))
            .map(|(media, spec)| Media { media: media.to_owned(), kind: kind(at(spec, "schema")) })
            .collect(),
    });
    let (errors, answers): (Vec<Answer>, Vec<Answer>) =
        answers.partition(|answer| answer.kinds.iter().any(|kind| kind.media == "application/problem+json"));
    Operation {
        id: text(spec, "operationId"),
        method: method.to_uppercase(),
        path,
        summary: text(spec, "summary"),
        description: prose(text(spec, "description")),
        role: item(at(at(spec, "security").get(0).unwrap_or(&Value::Null), "bearer")),
        fields: parameters.chain(fields(body, "in the body")).collect(),
        sample: at(spec, "x-codeSamples").get(0).map_or("", |sample| text(sample, "source")),
        answers,
        errors,
        message: spec.get("x-message").map(kind),
    }
}

fn type_of<'a>(name: &'a str, schema: &'a Value) -> Type<'a> {
    let fields = fields(schema, "");
    let variants: Vec<Variant> = at(schema, "oneOf")
        .as_array()
        .into_iter()
        .flatten()
        .filter(|variant| variant.get("properties").is_some())
        .map(|variant| Variant { description: prose(text(variant, "description")), fields: self::fields(variant, "") })
        .collect();
    let choices = choices(schema);
    let is_something_else = fields.is_empty() && variants.is_empty() && choices.is_empty();
    Type {
        name,
        description: prose(text(schema, "description")),
        kind: if is_something_else { kind(schema) } else { Vec::new() },
        fields,
        choices,
        variants,
    }
}

fn fields(schema: &Value, place: &'static str) -> Vec<Field> {
    let required = at(schema, "required").as_array();
    members(at(schema, "properties"))
        .map(|(name, schema)| {
            let required = required.is_some_and(|required| required.iter().any(|one| one == name));
            field(name, place, required, schema, schema)
        })
        .collect()
}

fn field(name: &str, place: &'static str, required: bool, schema: &Value, spec: &Value) -> Field {
    Field {
        name: name.to_owned(),
        place,
        required,
        kind: kind(schema),
        limits: limits(schema),
        description: prose(text(spec, "description")),
        choices: choices(schema).into_iter().filter(|choice| !choice.meaning.is_empty()).collect(),
    }
}

/// Returns the values of an enum schema.
fn choices(schema: &Value) -> Vec<Choice> {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let plain = |value: &Value| Choice { value: word(value), meaning: Vec::new() };
    let one_of = at(schema, "oneOf").as_array().into_iter().flatten();
    let variants = one_of.filter_map(|one| {
        let meaning = prose(text(one, "description"));
        Some(Choice { value: word(one.get("const")?), meaning })
    });
    let listed = at(schema, "enum").as_array().into_iter().flatten().map(plain);
    listed.chain(schema.get("const").map(plain)).chain(variants).collect()
}

/// Describes a schema in a few words.
fn kind(schema: &Value) -> Vec<Word> {
    let word = |text: &str| vec![Word { text: text.to_owned(), href: None }];
    if let Some(name) = text(schema, "$ref").strip_prefix(SCHEMAS) {
        return vec![Word { text: name.to_owned(), href: Some(format!("#type-{name}")) }];
    }
    if let Some(alternatives) = at(schema, "anyOf").as_array() {
        return between(alternatives.iter().map(kind), " or ");
    }
    let choices = choices(schema);
    if !choices.is_empty() {
        return between(choices.iter().map(|choice| word(&choice.value)), " | ");
    }
    match at(schema, "type") {
        Value::Array(types) => between(types.iter().map(|one| of_type(one, schema)), " or "),
        one => of_type(one, schema),
    }
}

fn of_type(name: &Value, schema: &Value) -> Vec<Word> {
    let word = |text: &str| vec![Word { text: text.to_owned(), href: None }];
    match name.as_str().unwrap_or_default() {
        "null" => word("null"),
        "boolean" => word("boolean"),
        "integer" => word("integer"),
        "number" => word("number"),
        "string" => word("string"),
        "array" => match at(schema, "prefixItems").as_array() {
            Some(items) => [word("["), between(items.iter().map(kind), ", "), word("]")].concat(),
            None => [word("array of "), kind(at(schema, "items"))].concat(),
        },
        "object" if at(schema, "additionalProperties").is_object() => {
            [word("map of "), kind(at(schema, "additionalProperties"))].concat()
        }
        "object" => word("object"),
        _ => word("any"),
    }
}

fn between(parts: impl Iterator<Item = Vec<Word>>, separator: &str) -> Vec<Word> {
    let mut all = Vec::new();
    for part in parts {
        if !all.is_empty() {
            all.push(Word { text: separator.to_owned(), href: None });
        }
        all.extend(part);
    }
    all
}

/// Describes length and value limits and the default.
fn limits(schema: &Value) -> String {
    let number = |name: &str| at(schema, name).as_f64();
    let range = |least: Option<f64>, most: Option<f64>| match (least.filter(|least| *least > 0.0), most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}")),
        (Some(least), None) => Some(format!("≥ {least}")),
        (None, Some(most)) => Some(format!("≤ {most}")),
        (None, None) => None,
    };
    let is_small = |most: &f64| *most < 1e12;
    let values = range(number("minimum"), number("maximum").filter(is_small));
    let items = range(number("minItems"), number("maxItems")).map(|items| format!("{items} items"));
    let length = number("minLength").filter(|least| *least > 0.0).map(|_| "not empty".to_owned());
    let default = schema
        .get("default")
        .map(|default| format!("default {}", default.as_str().map_or_else(|| default.to_string(), str::to_owned)));
    [values, items, length, default].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(schema: &Value) -> String {
        kind(schema).into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn schemas_are_described_in_words() {
        for (schema, expected) in [
            (json!({"$ref": "#/components/schemas/Event"}), "Event"),
            (json!({"type": ["integer", "null"], "minimum": 0}), "integer or null"),
            (json!({"anyOf": [{"$ref": "#/components/schemas/ReasonKept"}, {"type": "null"}]}), "ReasonKept or null"),
            (json!({"type": "array", "items": {"type": "string"}}), "array of string"),
            (json!({"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]}), "[number, integer]"),
            (json!({"type": "object", "additionalProperties": {"type": "integer"}}), "map of integer"),
            (json!({"type": "string", "enum": ["json", "csv"]}), "json | csv"),
            (json!({"oneOf": [{"const": "a", "description": "A."}, {"const": "b"}]}), "a | b"),
            (json!(true), "any"),
        ] {
            assert_eq!(words(&schema), expected, "{schema}");
        }
        let limited = json!({"type": "integer", "minimum": 1, "maximum": 200, "default": 50});
        assert_eq!(limits(&limited), "1 to 200, default 50");
        assert_eq!(limits(&json!({"type": "integer", "minimum": 0})), "");
    }

    #[test]
    fn backticks_delimit_code() {
        let code = |text: &str| Piece { code: true, text: text.to_owned() };
        let words = |text: &str| Piece { code: false, text: text.to_owned() };
        assert_eq!(prose("`a` and\n   `b`."), [code("a"), words(" and "), code("b"), words(".")]);
    }
}
