//! Posts JSON, and interprets the HTTP response for a message and its channel.
//!
//! A status alone proves little, because proxies, captive portals and login pages respond instead of the service.
//! Only a response that rejects the payload is final; after any other, the message stays queued.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, NaiveDateTime, Utc};
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

use super::Outcome;
use crate::error_chain::{causes, root_cause, tls_error};
use crate::http_client::{self, ANSWER_WITHIN};
use crate::printable::{shortened, visible};
use crate::tls;

/// First pause after a failure without `Retry-After`.
const SOON: Duration = Duration::from_secs(2);
/// Pause after a 429 without `Retry-After`.
const REST: Duration = Duration::from_secs(30);
/// Maximum bytes read of a response.
const READ_AT_MOST: usize = 64 * 1024;
/// Maximum number of redirects.
const REDIRECTS: usize = 3;
/// Parts of the webhook URL of at least this length are removed from responses that repeat them.
const SECRET_FROM: usize = 6;

/// Error codes of Slack and compatible services that reject this payload.
const PAYLOAD_REFUSED: [&str; 8] = [
    "invalid_payload",
    "invalid_blocks",
    "invalid_blocks_format",
    "invalid_attachments",
    "too_many_attachments",
    "no_text",
    "msg_too_long",
    "msg_blocks_too_long",
];
/// Error codes that reject every message until the webhook or the service is reconfigured.
const CHANNEL_REFUSED: [&str; 19] = [
    "account_inactive",
    "action_prohibited",
    "channel_is_archived",
    "channel_not_found",
    "invalid_auth",
    "invalid_token",
    "is_archived",
    "no_active_hooks",
    "no_service",
    "no_service_id",
    "no_team",
    "not_authed",
    "not_in_channel",
    "org_login_required",
    "posting_to_general_channel_denied",
    "restricted_action",
    "team_disabled",
    "token_revoked",
    "user_not_found",
];
const RATE_LIMITED: [&str; 2] = ["rate_limited", "ratelimited"];

/// Client of all channels. Trusts the certificates in the PEM file `authorities` in addition to those of the system.
///
/// # Errors
/// If TLS is not available.
pub(super) fn client(authorities: Option<&str>) -> Result<Client, String> {
    http_client::builder(authorities.map(|path| ("ALERT_WEBHOOK_CA_FILE", path)))?
        .redirect(Policy::custom(redirect))
        .build()
        .map_err(|_| "no HTTP client: cannot initialize TLS".to_owned())
}

/// Follows only redirects that keep method, payload, host and TLS. Any other would send the message, and the secret
/// in the URL, elsewhere.
fn redirect(attempt: Attempt<'_>) -> Action {
    let keeps_post = matches!(attempt.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let is_safe = attempt.previous().last().is_some_and(|from| {
        let to = attempt.url();
        let same_port = from.port_or_known_default() == to.port_or_known_default();
        let same = from.scheme() == to.scheme() && same_port;
        let upgraded = from.scheme() == "http" && to.scheme() == "https";
        from.host_str() == to.host_str() && (same || upgraded)
    });
    if keeps_post && is_safe && attempt.previous().len() <= REDIRECTS { attempt.follow() } else { attempt.stop() }
}

/// A POST request of a channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// Its URL, which may contain a secret.
    pub url: String,
    /// `Authorization` header.
    pub authorization: Option<String>,
    /// `Content-Type` header.
    pub content_type: String,
    /// Body.
    pub body: String,
    /// A secret that the URL does not contain.
    pub secret: Option<String>,
}

impl Request {
    /// Posts `body` as JSON.
    pub(super) fn json(url: impl Into<String>, body: &Value) -> Self {
        let content_type = "application/json".to_owned();
        Self { url: url.into(), authorization: None, content_type, body: body.to_string(), secret: None }
    }

    /// The same, with a secret in its body or header, which is removed from what the service answers.
    pub(super) fn keeping(self, secret: &str) -> Self {
        Self { secret: Some(secret.to_owned()).filter(|secret| !secret.is_empty()), ..self }
    }
}

/// Sends a request. The outcome contains neither its URL nor its secret.
pub(super) async fn send(client: &Client, request: Request) -> Outcome {
    let mut post = client.post(&request.url).header(CONTENT_TYPE, &request.content_type).body(request.body);
    if let Some(authorization) = &request.authorization {
        post = post.header(AUTHORIZATION, authorization);
    }
    outcome(post, &request.url, request.secret.as_deref()).await
}

/// Requests `url`. The outcome never contains the URL, which is a secret.
pub(super) async fn get(client: &Client, url: &str) -> Outcome {
    outcome(client.get(url), url, None).await
}

async fn outcome(request: RequestBuilder, url: &str, secret: Option<&str>) -> Outcome {
    match request.send().await {
        Ok(response) => match Answer::read(response, (url, secret)).await {
            Ok(answer) => answer.meaning(),
            Err(error) => not_answered(&error),
        },
        Err(error) => not_answered(&error),
    }
}

/// Outcome of a request without a response.
fn not_answered(error: &reqwest::Error) -> Outcome {
    let failed = |why: String| Outcome::ChannelFailed { at_least: SOON, why };
    let cause = |what: &str| causes(error).any(|cause| cause.to_string().contains(what));
    if error.is_builder() {
        Outcome::ChannelBroken("invalid URL".to_owned())
    } else if cause("proxy authorization required") {
        proxy_login("the proxy answered 407")
    } else if cause("tunnel error: unsuccessful") {
        failed("cannot connect: the proxy (HTTPS_PROXY) rejected the request".to_owned())
    } else if let Some(why) = tls_error(error, &tls::WEBHOOK) {
        Outcome::ChannelBroken(why)
    } else if error.is_timeout() {
        failed(format!("timed out after {} s", ANSWER_WITHIN.as_secs()))
    } else if error.is_connect() {
        failed(format!("cannot connect: {}", root_cause(error)))
    } else {
        failed("connection closed".to_owned())
    }
}

fn proxy_login(said: &str) -> Outcome {
    Outcome::ChannelBroken(format!(
        "{said}: the proxy requires authentication; set user and password in HTTPS_PROXY or HTTP_PROXY"
    ))
}

/// The URL of a request, and a secret that it does not contain.
type Secrets<'a> = (&'a str, Option<&'a str>);

/// The pause that Telegram and Discord request in the body, seconds.
fn retry_after_in(body: &str) -> Option<Duration> {
    let body: Value = serde_json::from_str(body).ok()?;
    let asked = body.get("retry_after").or_else(|| body.pointer("/parameters/retry_after"))?.as_f64()?;
    asked.is_finite().then(|| Duration::from_secs_f64(asked.clamp(0.0, 1e9)))
}

/// The relevant parts of a response.
struct Answer {
    status: StatusCode,
    /// Status and beginning of the body, without secrets.
    said: String,
    retry_after: Option<Duration>,
    /// Target of a redirect, without secrets.
    location: Option<String>,
    body: String,
}

impl Answer {
    async fn read(mut response: Response, secrets: Secrets<'_>) -> Result<Self, reqwest::Error> {
        let mut body = Vec::new();
        // Without a length, the body ends with the connection, which many servers close without a TLS close_notify.
        let ends_with_connection =
            response.content_length().is_none() && !response.headers().contains_key(TRANSFER_ENCODING);
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(_) if ends_with_connection => break,
                Err(error) => return Err(error),
            };
            body.extend_from_slice(&chunk);
            if body.len() > READ_AT_MOST {
                body.truncate(READ_AT_MOST);
                break;
            }
        }
        let location = response.headers().get(LOCATION).and_then(|to| new_address(response.url(), to, secrets));
        let retry_after = retry_after(response.headers(), SystemTime::now());
        Ok(Self::new(response.status(), &String::from_utf8_lossy(&body), retry_after, location, secrets))
    }

    fn new(
        status: StatusCode,
        body: &str,
        retry_after: Option<Duration>,
        location: Option<String>,
        secrets: Secrets<'_>,
    ) -> Self {
        let body = body.trim_start_matches('\u{feff}').trim();
        let words = if is_html(body) { "an HTML page".to_owned() } else { without_secrets(body, secrets) };
        let words = shortened(&visible(&words), 120);
        let said = if words.is_empty() { status.to_string() } else { format!("{status}: {words}") };
        let retry_after = retry_after.or_else(|| retry_after_in(body));
        Self { status, said, retry_after, location, body: body.to_owned() }
    }

    fn meaning(self) -> Outcome {
        let Self { status, said, retry_after, location, body } = self;
        let error = error_code(&body);
        let is_code = |codes: &[&str]| codes.contains(&error.as_deref().unwrap_or(&body));
        if status.is_redirection() {
            let to = location.map(|to| format!(" moved to {to}")).unwrap_or_default();
            return Outcome::ChannelBroken(format!("{status}:{to}; configure the new address of the service"));
        }
        if status == StatusCode::TOO_MANY_REQUESTS || is_code(&RATE_LIMITED) {
            return rests(retry_after.unwrap_or(REST), said);
        }
        if is_code(&PAYLOAD_REFUSED) {
            return Outcome::Never(said);
        }
        if is_code(&CHANNEL_REFUSED) {
            return Outcome::ChannelBroken(said);
        }
        if status.is_success() {
            return match error {
                _ if is_html(&body) => Outcome::ChannelBroken(format!(
                    "{said} instead of a response of the service (a login page, a captive portal or a wrong address)"
                )),
                Some(_) => Outcome::Refused(said),
                None => match failure_in_words(&body) {
                    Some(Failure::RateLimit) => rests(retry_after.unwrap_or(REST), said),
                    Some(Failure::Other) => Outcome::Refused(said),
                    None => Outcome::Sent(said),
                },
            };
        }
        match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => proxy_login(&said),
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::GONE
            | StatusCode::NETWORK_AUTHENTICATION_REQUIRED => Outcome::ChannelBroken(said),
            StatusCode::PAYLOAD_TOO_LARGE => Outcome::Never(said),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Outcome::ChannelFailed { at_least: SOON, why: said },
            _ if status.is_client_error() => Outcome::Refused(said),
            _ => match retry_after {
                Some(rest) if status == StatusCode::SERVICE_UNAVAILABLE => rests(rest, said),
                _ => Outcome::ChannelFailed { at_least: SOON, why: said },
            },
        }
    }
}

fn rests(rest: Duration, why: String) -> Outcome {
    Outcome::TryAgainAfter { channel_rests: Some(rest), at_least: rest, why }
}

/// Whether the body is a page: of a login, a captive portal or a proxy.
fn is_html(body: &str) -> bool {
    let start: String = body.chars().take(2000).collect::<String>().to_lowercase();
    let tags = ["<!doctype html", "<html", "<head", "<body", "<meta", "<script", "<title"];
    start.starts_with('<') && tags.iter().any(|tag| start.contains(tag))
}

/// What a text reports in words, in spite of a successful status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    RateLimit,
    Other,
}

/// A failure that a body reports in words. Microsoft Teams and healthchecks.io respond with 200 in any case.
fn failure_in_words(body: &str) -> Option<Failure> {
    if body.starts_with(['{', '[']) {
        return None;
    }
    let text = body.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if any(&["rate limit", "ratelimit", "too many requests", "error 429"]) {
        Some(Failure::RateLimit)
    } else if any(&["fail", "error", "not found", "denied", "forbidden", "unauthori", "invalid", "expired", "unknown"])
    {
        Some(Failure::Other)
    } else {
        None
    }
}

/// Error code or text in a JSON body; `None` if it reports no error.
fn error_code(body: &str) -> Option<String> {
    let Ok(Value::Object(body)) = serde_json::from_str::<Value>(body) else { return None };
    let is_false = |key: &str| body.get(key) == Some(&Value::Bool(false));
    let number = |key: &str| body.get(key).and_then(Value::as_i64);
    // 0 and the statuses of HTTP mean success where the code of an error is a number as well.
    let is_failure = |code: i64| code != 0 && !(200..300).contains(&code);
    let is_word = |key: &str, words: &[&str]| {
        body.get(key).and_then(Value::as_str).is_some_and(|word| words.contains(&word.to_lowercase().as_str()))
    };
    let text = |key: &str| match body.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Object(inner)) => {
            ["code", "message"].iter().find_map(|key| inner.get(*key)?.as_str()).map(str::to_owned)
        }
        _ => None,
    };
    let failed = is_false("ok")
        || is_false("success")
        || is_word("status", &["error", "fail", "failed", "failure"])
        || is_word("result", &["error", "fail", "failed", "failure"])
        || number("errcode").is_some_and(|code| code != 0)
        || number("ok") == Some(0)
        || number("code").is_some_and(is_failure)
        || ["status", "statusCode"].iter().any(|key| number(key).is_some_and(|status| status >= 400))
        || body.get("errors").is_some_and(|errors| match errors {
            Value::Array(errors) => !errors.is_empty(),
            Value::Object(errors) => !errors.is_empty(),
            Value::String(errors) => !errors.is_empty(),
            _ => false,
        })
        || body.get("error").is_some_and(|error| error == &Value::Bool(true))
        || text("error").is_some();
    failed.then(|| {
        ["error", "code", "description", "message", "errmsg", "msg"]
            .iter()
            .find_map(|key| text(key))
            .unwrap_or_default()
    })
}

/// Pause in `Retry-After`: seconds, or a date relative to the server's `Date`.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let asked = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = asked.parse::<f64>() {
        return seconds.is_finite().then(|| Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    }
    let date = |text: &str| http_date(text.trim());
    let now = headers.get(DATE).and_then(|now| date(now.to_str().ok()?)).unwrap_or_else(|| DateTime::from(now));
    Some((date(asked)? - now).to_std().unwrap_or_default())
}

/// Parses the three date formats of RFC 9110, section 5.6.7.
fn http_date(text: &str) -> Option<DateTime<Utc>> {
    let naive = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|time| time.and_utc());
    DateTime::parse_from_rfc2822(text)
        .map(|time| time.to_utc())
        .ok()
        .or_else(|| naive("%A, %d-%b-%y %H:%M:%S GMT"))
        .or_else(|| naive("%a %b %e %H:%M:%S %Y"))
}

/// Target of a redirect from `from`, without its query and the secrets of the configured URL.
fn new_address(from: &Url, location: &HeaderValue, secrets: Secrets<'_>) -> Option<String> {
    let text = String::from_utf8_lossy(location.as_bytes());
    let mut to = from.join(&text).ok()?;
    to.set_query(None);
    to.set_fragment(None);
    _ = to.set_username("");
    _ = to.set_password(None);
    Some(shortened(&visible(&without_secrets(to.as_str(), secrets)), 200))
}

/// Removes path segments, query and credentials of `url` from `text`: a service may repeat the URL in its response.
fn without_secrets(text: &str, (url, secret): Secrets<'_>) -> String {
    let text = secret.map_or_else(|| text.to_owned(), |secret| text.replace(secret, "…"));
    let Ok(url) = Url::parse(url) else { return text };
    let (login, password) = (url.username(), url.password().unwrap_or_default());
    let after_host = format!("{login} {password} {} {}", url.path(), url.query().unwrap_or_default());
    let mut parts: Vec<&str> =
        after_host.split([' ', '/', '&', '=', '?']).filter(|part| part.chars().count() >= SECRET_FROM).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts.iter().fold(text, |text, part| text.replace(part, "…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://hooks.example/services/T0/B0/verysecret?key=alsosecret";

    fn answered(status: u16, body: &str) -> Outcome {
        Answer::new(StatusCode::from_u16(status).unwrap(), body, None, None, (URL, None)).meaning()
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Sent(_) => "sent",
            Outcome::TryAgainAfter { .. } => "rests",
            Outcome::ChannelFailed { .. } => "failed",
            Outcome::Refused(_) => "refused",
            Outcome::Never(_) => "never",
            Outcome::ChannelBroken(_) => "broken",
        }
    }

    #[test]
    fn a_2xx_with_an_error_in_its_body_is_not_sent() {
        for (body, expected) in [
            ("ok", "sent"),
            ("", "sent"),
            ("1", "sent"),
            (r#"{"ok":true}"#, "sent"),
            (r#"{"status":"success","error":null}"#, "sent"),
            (r#"{"errcode":0,"errmsg":"ok"}"#, "sent"),
            (r#"{"ok":false,"error":"channel_not_found"}"#, "broken"),
            (r#"{"ok":false,"error":"invalid_blocks"}"#, "never"),
            (r#"{"ok":false,"error":"ratelimited"}"#, "rests"),
            (r#"{"ok":false,"error":"something_new"}"#, "refused"),
            (r#"{"ok":false}"#, "refused"),
            (r#"{"success":false,"error":{"code":"no"}}"#, "refused"),
            (r#"{"result":"error","msg":"Bad event name"}"#, "refused"),
            (r#"{"errcode":310000,"errmsg":"keywords not in content"}"#, "refused"),
            ("no_service", "broken"),
            ("<!DOCTYPE html><title>Log in</title>", "broken"),
            ("\u{feff}\n<html><body>Accept the terms", "broken"),
            ("<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0\"><html>", "broken"),
            ("<!-- portal --><script>location='/login'</script>", "broken"),
            ("<meta http-equiv=\"refresh\" content=\"0; url=/login\">", "broken"),
            // Microsoft Teams, Feishu, healthchecks.io.
            ("Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429", "rests"),
            ("Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 403", "refused"),
            (r#"{"code":19001,"msg":"param invalid: incoming webhook access token invalid"}"#, "refused"),
            (r#"{"code":0,"msg":"success"}"#, "sent"),
            (r#"{"code":200,"message":"success"}"#, "sent"),
            ("OK (not found)", "refused"),
            ("OK (rate limited)", "rests"),
            (r#"{"errors":{"text":["is required"]}}"#, "refused"),
            (r#"{"status":403,"title":"Forbidden"}"#, "refused"),
            (r#"{"ok":0}"#, "refused"),
        ] {
            assert_eq!(kind(&answered(200, body)), expected, "{body}");
        }
        assert_eq!(kind(&answered(204, "")), "sent");
    }

    #[test]
    fn an_error_is_final_only_if_it_rejects_the_payload() {
        for (status, body, expected) in [
            (400, "invalid_payload", "never"),
            (400, "invalid_blocks", "never"),
            (413, "", "never"),
            (403, "invalid_token", "broken"),
            (400, "user_not_found", "broken"),
            (404, "no_service", "broken"),
            (410, "channel_is_archived", "broken"),
            (403, "action_prohibited", "broken"),
            (500, "rollup_error", "failed"),
            (401, "", "broken"),
            (405, "", "broken"),
            (407, "", "broken"),
            (511, "", "broken"),
            (400, "<html>400 The plain HTTP request was sent to HTTPS port", "refused"),
            (400, "bad request", "refused"),
            (415, "", "refused"),
            (422, "{\"detail\":\"field required\"}", "refused"),
            (408, "", "failed"),
            (425, "", "failed"),
            (502, "<html>Bad gateway", "failed"),
            (429, "", "rests"),
        ] {
            assert_eq!(kind(&answered(status, body)), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_redirect_breaks_the_channel_and_reports_the_new_address_without_secrets() {
        for status in [301, 302, 303, 307, 308] {
            let from = Url::parse(URL).unwrap();
            let to = HeaderValue::from_static("https://new.example/services/T0/B0/verysecret?next=alsosecret");
            let location = new_address(&from, &to, (URL, None));
            let outcome = Answer::new(StatusCode::from_u16(status).unwrap(), "", None, location, (URL, None)).meaning();
            let Outcome::ChannelBroken(why) = outcome else { panic!("{status}: {outcome:?}") };
            assert!(why.contains("moved to https://new.example/"), "{why}");
            assert!(!why.contains("verysecret") && !why.contains("alsosecret"), "{why}");
        }
        let relative = new_address(&Url::parse(URL).unwrap(), &HeaderValue::from_static("/login"), (URL, None));
        assert_eq!(relative.as_deref(), Some("https://hooks.example/login"));
    }

    #[test]
    fn secrets_are_removed_from_responses_that_repeat_the_url() {
        let Outcome::ChannelBroken(why) = answered(404, "Cannot POST /services/T0/B0/verysecret?key=alsosecret") else {
            panic!("a 404 breaks the channel")
        };
        assert!(why.contains("Cannot POST") && !why.contains("verysecret") && !why.contains("alsosecret"), "{why}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_servers_clock() {
        let asked = |after: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, after.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
            retry_after(&headers, now).map(|rest| rest.as_secs_f64())
        };
        assert_eq!(asked("4", None), Some(4.0));
        assert_eq!(asked(" 1.5", None), Some(1.5));
        assert_eq!(asked("-3", None), Some(0.0));
        for date in ["Sun, 06 Nov 1994 08:50:07 GMT", "Sunday, 06-Nov-94 08:50:07 GMT", "Sun Nov  6 08:50:07 1994"] {
            assert_eq!(asked(date, None), Some(30.0), "{date}");
        }
        // The server's clock is a day ahead.
        let (then, now) = ("Mon, 07 Nov 1994 08:50:07 GMT", "Mon, 07 Nov 1994 08:50:00 GMT");
        assert_eq!(asked(then, Some(now)), Some(7.0));
        assert_eq!(asked("Sun, 06 Nov 1994 00:00:00 GMT", None), Some(0.0), "it is over");
        assert_eq!((asked("soon", None), asked("inf", None)), (None, None));
    }
}
