//! Parameters of a POST: JSON from programs, a form from pages, or only the query string.

use actix_web::dev::Payload;
use actix_web::web::{Bytes, Form, Query};
use actix_web::{FromRequest, HttpRequest};
use futures_util::future::LocalBoxFuture;
use serde_json::{Map, Value};

use crate::web::alerts::is_form;
use crate::web::problem::Problem;
use crate::web::text_limits::{NAME, NEEDLE, REASON, at_most};

/// Names and values; a name may occur several times. Empty values are ignored.
#[derive(Debug, Default)]
pub struct FormOrJson {
    pairs: Vec<(String, String)>,
    /// The request is a form from a page.
    pub form: bool,
}

impl FormOrJson {
    /// First value of `name`.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// All values of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// Value of a required parameter; `expected` describes it in the error.
    pub fn needed(&self, name: &str, expected: &str) -> Result<&str, Problem> {
        self.one(name).ok_or_else(|| Problem::BadRequest(format!("{name} is missing: expected {expected}")))
    }

    /// A number of at most `most`; `otherwise` if absent.
    pub fn number(&self, name: &str, otherwise: u64, most: u64) -> Result<u64, Problem> {
        let Some(text) = self.one(name) else { return Ok(otherwise) };
        let number = text.parse().ok().filter(|number| *number <= most);
        number.ok_or_else(|| Problem::BadRequest(format!("{name} is {text:?}: expected a number up to {most}")))
    }

    /// Parameters in the query string.
    pub fn in_address(request: &HttpRequest) -> Result<Self, Problem> {
        let pairs = Query::<Vec<(String, String)>>::from_query(request.query_string());
        let pairs = pairs.map_err(|error| Problem::BadRequest(error.to_string()))?.into_inner();
        Self { pairs, form: false }.bounded()
    }

    /// Rejects values longer than any parameter may be.
    fn bounded(self) -> Result<Self, Problem> {
        const LONGEST: usize = if REASON > NAME { REASON } else { NAME };
        self.pairs.iter().try_for_each(|(name, value)| {
            let name: String = name.chars().take(100).collect();
            let most = if ["contains", "field"].contains(&name.as_str()) { NEEDLE } else { LONGEST };
            at_most(&name, value, most)
        })?;
        Ok(self)
    }

    fn of_json(map: Map<String, Value>) -> Result<Vec<(String, String)>, Problem> {
        let mut pairs = Vec::new();
        for (name, value) in map {
            let values = match value {
                Value::Array(values) => values,
                one => vec![one],
            };
            for value in values {
                match value {
                    Value::String(text) => pairs.push((name.clone(), text)),
                    Value::Number(_) | Value::Bool(_) => pairs.push((name.clone(), value.to_string())),
                    Value::Null => {}
                    other => {
                        return Err(Problem::BadRequest(format!(
                            "{name} is {other}: expected a string, a number or an array of them"
                        )));
                    }
                }
            }
        }
        Ok(pairs)
    }
}

impl FromRequest for FormOrJson {
    type Error = actix_web::Error;
    type Future = LocalBoxFuture<'static, Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let mut given = match Self::in_address(request) {
            Ok(given) => given,
            Err(problem) => return Box::pin(async move { Err(problem.into()) }),
        };
        if is_form(request) {
            let form = Form::<Vec<(String, String)>>::from_request(request, payload);
            return Box::pin(async move { Ok(Self { pairs: form.await?.into_inner(), form: true }.bounded()?) });
        }
        let body = Bytes::from_request(request, payload);
        Box::pin(async move {
            let body = body.await?;
            if !body.is_empty() {
                let map = serde_json::from_slice(&body)
                    .map_err(|error| Problem::BadRequest(format!("the body is not a JSON object: {error}")))?;
                given.pairs = Self::of_json(map)?;
            }
            Ok(given.bounded()?)
        })
    }
}
