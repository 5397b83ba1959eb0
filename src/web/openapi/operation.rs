//! The parts of an operation that the route table does not contain.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::pages::link::encoded;
use crate::web::access::{Needs, SESSION, Verb};
use crate::web::problem;

/// Generates the schema of a type.
type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// Tag of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Current state of the fleet.
    Live,
    /// Recorded data.
    History,
    /// Alerts, silences, rules.
    Alerts,
    /// Messages on streams, and the recycle bin.
    Messages,
    /// Cleanup and audit log.
    Admin,
    /// The monitor itself.
    Monitor,
}

impl Group {
    /// All groups, in the order of the document.
    pub const ALL: [Self; 6] = [Self::Live, Self::History, Self::Alerts, Self::Messages, Self::Admin, Self::Monitor];

    /// Name and description of the tag.
    #[must_use]
    pub fn name_and_description(self) -> (&'static str, &'static str) {
        match self {
            Self::Live => ("Live", "Current state of the fleet, as of the last poll."),
            Self::History => {
                ("History", "Recorded metrics and events over any time range. Values are aggregated in buckets.")
            }
            Self::Alerts => (
                "Alerts",
                "Alerts, silences, acknowledgements and rules. Changes are recorded in the \
             audit log.",
            ),
            Self::Messages => (
                "Messages",
                "Messages on streams: list, retry, dead-letter, move to the recycle bin, restore. A preview \
                 returns the affected messages and a token; applying the token performs exactly that change, once.",
            ),
            Self::Admin => ("Admin", "Cleanup, worker types and the audit log."),
            Self::Monitor => ("Monitor", "Health, metrics and API description."),
        }
    }
}

/// A path parameter.
struct InPath {
    name: &'static str,
    description: &'static str,
    example: &'static str,
}

/// A response.
struct Answer {
    status: u16,
    description: &'static str,
    media: Vec<(&'static str, MakeSchema)>,
}

/// Parameters and responses of a route.
pub struct Operation {
    group: Group,
    summary: &'static str,
    description: &'static str,
    path: Vec<InPath>,
    query: Option<MakeSchema>,
    body: Option<MakeSchema>,
    answers: Vec<Answer>,
    message: Option<MakeSchema>,
    refuses: Option<&'static str>,
    asks_who: bool,
    unavailable: Option<&'static str>,
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

impl Operation {
    /// An operation without parameters or responses. `summary` is a short phrase, `description` consists of
    /// sentences.
    #[must_use]
    pub fn new(group: Group, summary: &'static str, description: &'static str) -> Self {
        Self {
            group,
            summary,
            description,
            path: Vec::new(),
            query: None,
            body: None,
            answers: Vec::new(),
            message: None,
            refuses: None,
            asks_who: false,
            unavailable: None,
        }
    }

    /// Adds the path parameter `{name}` with an example.
    #[must_use]
    pub fn path(mut self, name: &'static str, description: &'static str, example: &'static str) -> Self {
        self.path.push(InPath { name, description, example });
        self
    }

    /// Adds the fields of `T` as query parameters. Fields with an example appear in the example request.
    #[must_use]
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(schema_of::<T>);
        self
    }

    /// Adds `T` as the request body. Fields with an example appear in the example request.
    #[must_use]
    pub fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(schema_of::<T>);
        self
    }

    /// Adds a JSON response of type `T` with status 200.
    #[must_use]
    pub fn answers<T: JsonSchema>(self, description: &'static str) -> Self {
        self.with_status::<T>(200, description)
    }

    /// Adds a JSON response of type `T` with this status.
    #[must_use]
    pub fn with_status<T: JsonSchema>(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer { status, description, media: vec![("application/json", schema_of::<T>)] });
        self
    }

    /// Adds a text response with this media type.
    #[must_use]
    pub fn answers_text(mut self, media_type: &'static str, description: &'static str) -> Self {
        self.answers.push(Answer { status: 200, description, media: vec![(media_type, schema_of::<String>)] });
        self
    }

    /// Marks the response as having an ETag.
    #[must_use]
    pub fn tagged(mut self) -> Self {
        let description = "Not modified since the response with the ETag in `If-None-Match`.";
        self.answers.push(Answer { status: 304, description, media: Vec::new() });
        self
    }

    /// Adds CSV as an alternative response format (`format=csv`).
    #[must_use]
    pub fn or_csv(self) -> Self {
        self.or_text("text/csv")
    }

    /// Adds text with this media type as an alternative, chosen by `Accept`.
    #[must_use]
    pub fn or_text(mut self, media_type: &'static str) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.media.push((media_type, schema_of::<String>));
        }
        self
    }

    /// Makes it a websocket on which the server sends `T` as JSON.
    #[must_use]
    pub fn sends<T: JsonSchema>(mut self, description: &'static str) -> Self {
        self.answers.push(Answer { status: 101, description, media: Vec::new() });
        self.message = Some(schema_of::<T>);
        self
    }

    /// Documents a 400 of an operation without parameters.
    #[must_use]
    pub fn refuses(mut self, when: &'static str) -> Self {
        self.refuses = Some(when);
        self
    }

    /// Marks the operation as reading credentials although the route requires none.
    #[must_use]
    pub fn asks_who(mut self) -> Self {
        self.asks_who = true;
        self
    }

    /// Documents when it returns 503.
    #[must_use]
    pub fn unavailable(mut self, when: &'static str) -> Self {
        self.unavailable = Some(when);
        self
    }

    /// The OpenAPI operation. `taken` and `answered` collect the schemas of requests and responses.
    pub(super) fn told(
        &self,
        (verb, needs): (Verb, Needs),
        path: &Path,
        taken: &mut SchemaGenerator,
        answered: &mut SchemaGenerator,
    ) -> Value {
        let mut told = Map::new();
        let mut set = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
        set("operationId", json!(path.id(verb)));
        set("tags", json!([self.group.name_and_description().0]));
        set("summary", json!(self.summary));
        set("description", json!(self.description));
        set("security", json!(security(needs)));
        let parameters = self.parameters(path, taken);
        if !parameters.is_empty() {
            set("parameters", json!(parameters));
        }
        let body = self.body.map(|schema| body(&schema(taken)));
        let sample = sample((verb, needs), path, &parameters, body.as_ref());
        if let Some(body) = body {
            set("requestBody", body);
        }
        set("responses", self.responses((verb, needs), !parameters.is_empty(), answered));
        if let Some(schema) = self.message {
            set("x-message", json!(schema(answered)));
        }
        set("x-codeSamples", json!([{"lang": "Shell", "label": "curl", "source": sample}]));
        Value::Object(told)
    }

    fn parameters(&self, path: &Path, taken: &mut SchemaGenerator) -> Vec<Value> {
        let in_path = path.names.iter().map(|name| {
            let known = self.path.iter().find(|known| known.name == name);
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": known.map_or("", |known| known.description),
                "schema": {"type": "string"},
                "example": known.map_or("", |known| known.example),
            })
        });
        let query = self.query.map(|schema| schema(taken).to_value()).unwrap_or_default();
        in_path.chain(fields(&query).map(|field| field.parameter())).collect()
    }

    fn responses(&self, (verb, needs): (Verb, Needs), takes: bool, answered: &mut SchemaGenerator) -> Value {
        let mut responses = Map::new();
        for answer in &self.answers {
            let mut told = Map::from_iter([("description".to_owned(), json!(answer.description))]);
            if !answer.media.is_empty() {
                let media = answer.media.iter();
                let media = media.map(|(name, schema)| ((*name).to_owned(), json!({"schema": schema(answered)})));
                told.insert("content".to_owned(), Value::Object(media.collect()));
            }
            responses.insert(answer.status.to_string(), Value::Object(told));
        }
        let mut problem = |status: u16, when: &str| {
            let schema = schema_of::<problem::ProblemDetails>(answered);
            let content = json!({"application/problem+json": {"schema": schema}});
            responses.insert(status.to_string(), json!({"description": when, "content": content}));
        };
        if takes || self.body.is_some() || verb == Verb::Socket {
            problem(400, "Invalid request; `detail` names the parameter and the expected value.");
        }
        if let Some(when) = self.refuses {
            problem(400, when);
        }
        if self.body.is_some() {
            problem(413, "The request body is too large.");
        }
        if needs != Needs::Nobody || self.asks_who {
            problem(401, "Missing or invalid credentials.");
            problem(403, "Insufficient role, or a cross-site request.");
            problem(
                429,
                "Too many failed logins (see `Retry-After`), connections from this address, or expensive requests of this \
                 client.",
            );
        }
        if let Some(when) = self.unavailable {
            problem(503, when);
        }
        responses.sort_keys();
        Value::Object(responses)
    }
}

/// Security requirements for a role: one alternative per scheme.
fn security(needs: Needs) -> Vec<Value> {
    match needs {
        Needs::Nobody => Vec::new(),
        Needs::AtLeast(role) => schemes().into_iter().map(|(name, _)| json!({name: [role]})).collect(),
    }
}

/// Security schemes by name.
pub(super) fn schemes() -> Map<String, Value> {
    Map::from_iter([
        (
            "bearer".to_owned(),
            json!({"type": "http", "scheme": "bearer", "description": "Bearer token (`MONITOR_AUTH=token`)."}),
        ),
        (
            "basic".to_owned(),
            json!({
                "type": "http",
                "scheme": "basic",
                "description": "Any user name, with a token as the password (`MONITOR_AUTH=basic`).",
            }),
        ),
        (
            "session".to_owned(),
            json!({
                "type": "apiKey",
                "in": "cookie",
                "name": SESSION.name,
                "description": "Browser session cookie (`MONITOR_AUTH=token`).",
            }),
        ),
    ])
}

/// A path in OpenAPI syntax.
pub(super) struct Path {
    /// The path, with `{name}` for each parameter.
    pub(super) text: String,
    names: Vec<String>,
}

impl Path {
    /// Converts a pattern of the route table, in which a name may be followed by a regular expression.
    pub(super) fn of(pattern: &str) -> Self {
        let (mut text, mut names) = (String::new(), Vec::new());
        let mut rest = pattern;
        while let Some((before, (name, after))) =
            rest.split_once('{').and_then(|(before, after)| Some((before, after.split_once('}')?)))
        {
            let name = name.split(':').next().unwrap_or_default();
            text.push_str(&format!("{before}{{{name}}}"));
            names.push(name.to_owned());
            rest = after;
        }
        text.push_str(rest);
        Self { text, names }
    }

    /// Operation ID: unique, and stable while the route exists.
    fn id(&self, verb: Verb) -> String {
        let words = self.text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let words: Vec<&str> = words.filter(|word| *word != "api").collect();
        format!("{}_{}", method(verb), words.join("_"))
    }
}

pub(super) fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Read | Verb::Socket => "get",
        Verb::Change => "post",
    }
}

/// Example request as a shell command, with the monitor's address in `$MONITOR` and a token in `$TOKEN`.
fn sample((verb, needs): (Verb, Needs), path: &Path, parameters: &[Value], body: Option<&Value>) -> String {
    let mut command = "curl".to_owned();
    if verb == Verb::Change {
        command.push_str(" -X POST");
    }
    if verb == Verb::Socket {
        command.push_str(
            " -N --max-time 5 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
             -H 'Sec-WebSocket-Key: c2hlcGhlcmQgbW9uaXRvcg=='",
        );
    }
    if needs != Needs::Nobody {
        command.push_str(" -H \"Authorization: Bearer $TOKEN\"");
    }
    if let Some(example) = body.and_then(|body| body.pointer("/content/application~1json/example")) {
        let json = example.to_string().replace('\'', r"'\''");
        command.push_str(&format!(" -H 'Content-Type: application/json' -d '{json}'"));
    }
    let (mut address, mut query) = (path.text.clone(), String::new());
    for parameter in parameters {
        let (Some(name), Some(example)) = (parameter.get("name").and_then(Value::as_str), parameter.get("example"))
        else {
            continue;
        };
        let example = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
        let example = encoded(example.as_bytes());
        if parameter.get("in").is_some_and(|place| place == "path") {
            address = address.replace(&format!("{{{name}}}"), &example);
        } else {
            let before = if query.is_empty() { '?' } else { '&' };
            query.push_str(&format!("{before}{name}={example}"));
        }
    }
    format!("{command} \"$MONITOR{address}{query}\"")
}

/// A field of a request type.
struct Field<'a> {
    name: &'a str,
    required: bool,
    description: Value,
    example: Option<Value>,
    schema: Map<String, Value>,
}

/// Fields of an object schema.
fn fields(schema: &Value) -> impl Iterator<Item = Field<'_>> {
    let required = schema.get("required").and_then(Value::as_array);
    let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    fields.map(move |(name, schema)| {
        let mut schema = schema.as_object().cloned().unwrap_or_default();
        forget_null(&mut schema);
        Field {
            name,
            required: required.is_some_and(|required| required.iter().any(|one| one == name)),
            description: schema.shift_remove("description").unwrap_or_default(),
            example: schema.shift_remove("examples").and_then(|examples| examples.get(0).cloned()),
            schema,
        }
    })
}

/// Removes `null` from the types: clients omit optional fields.
fn forget_null(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".to_owned(), one);
        }
    }
    if schema.get("default").is_some_and(|default| default.is_null() || default == "") {
        schema.shift_remove("default");
    }
    if let Some(Value::Array(alternatives)) = schema.get_mut("anyOf") {
        alternatives.retain(|one| one.get("type").is_none_or(|one| one != "null"));
        if let [Value::Object(one)] = alternatives.as_slice() {
            let one = one.clone();
            schema.shift_remove("anyOf");
            schema.extend(one.into_iter().filter(|(name, _)| name != "description"));
        }
    }
}

impl Field<'_> {
    fn parameter(self) -> Value {
        let mut told = json!({
            "name": self.name,
            "in": "query",
            "required": self.required,
            "description": self.description,
            "schema": self.schema,
        });
        if let (Some(told), Some(example)) = (told.as_object_mut(), self.example) {
            told.insert("example".to_owned(), example);
        }
        told
    }
}

/// Request body with an example, built from the examples of its fields.
fn body(schema: &Schema) -> Value {
    let (mut properties, mut example) = (Map::new(), Map::new());
    for field in fields(schema.as_value()) {
        let mut schema = field.schema;
        schema.insert("description".to_owned(), field.description);
        properties.insert(field.name.to_owned(), Value::Object(schema));
        example.extend(field.example.map(|value| (field.name.to_owned(), value)));
    }
    let mut told = json!({"type": "object", "properties": properties});
    if let (Some(told), Some(required)) = (told.as_object_mut(), schema.get("required")) {
        told.insert("required".to_owned(), required.clone());
    }
    json!({"required": schema.get("required").is_some(), "content": {"application/json": {"schema": told, "example": example}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_patterns_become_openapi_paths_and_operation_ids() {
        let path = Path::of("/api/streams/{name:.*}/messages/{id}");
        assert_eq!(path.text, "/api/streams/{name}/messages/{id}");
        assert_eq!(path.names, ["name", "id"]);
        assert_eq!(path.id(Verb::Change), "post_streams_name_messages_id");
        assert_eq!(Path::of("/-/reload").id(Verb::Change), "post_reload");
    }
}
