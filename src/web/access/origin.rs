//! Cross-origin checks: a request must come from this monitor's own pages or from no page.

use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use crate::web::problem::Problem;

/// Checks `Origin` and `Sec-Fetch-Site`, which browsers send. Behind a proxy that changes `Host`, `own`
/// (`SERVER_URL`) is the site's address.
///
/// # Errors
/// If the request comes from a page of another site.
pub(super) fn same(headers: &HeaderMap, own: Option<&str>) -> Result<(), Problem> {
    let values = |name: &str| -> Vec<String> {
        headers.get_all(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let foreign = |what: String| Err(Problem::Forbidden(format!("cross-site requests are not allowed: {what}")));
    let (sites, origins, hosts) = (values("sec-fetch-site"), values(ORIGIN.as_str()), values(HOST.as_str()));
    if !sites.is_empty() {
        let same = sites.iter().all(|site| site == "same-origin");
        return if same { Ok(()) } else { foreign(format!("Sec-Fetch-Site held {}", quoted(&sites))) };
    }
    if origins.is_empty() {
        return Ok(());
    }
    let is_own = |origin: &String| {
        let Some((scheme, host)) = origin.split_once("://") else { return false };
        let host = without_default_port(scheme, host);
        let is_asked = matches!(hosts.as_slice(), [asked] if without_default_port(scheme, asked) == host);
        let is_site = || own.and_then(site).is_some_and(|own| own == (scheme.to_ascii_lowercase(), host.clone()));
        !host.is_empty() && (is_asked || is_site())
    };
    // Of repeated headers, one may be the client's own. A value that is not ASCII must not count as absent.
    let is_doubtful = |values: &[String]| values.len() > 1 || values.iter().any(|value| !value.is_ascii());
    if !is_doubtful(&origins) && !is_doubtful(&hosts) && origins.iter().all(is_own) {
        return Ok(());
    }
    let server_url = own.map_or_else(|| "SERVER_URL is not set".to_owned(), |own| format!("SERVER_URL is {own:?}"));
    foreign(format!(
        "Origin held {}, Host {}; {server_url}. A proxy must pass the browser's Host on with its port, or SERVER_URL must \
         be the address that the browser shows",
        quoted(&origins),
        quoted(&hosts)
    ))
}

/// Header values for error messages.
fn quoted(values: &[String]) -> String {
    let shown: Vec<String> =
        values.iter().take(3).map(|value| format!("{:?}", value.chars().take(80).collect::<String>())).collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(" and ") }
}

fn without_default_port(scheme: &str, host: &str) -> String {
    let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    host.strip_suffix(default).unwrap_or(host).to_ascii_lowercase()
}

/// Scheme and host of a URL.
fn site(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    Some((scheme.to_ascii_lowercase(), without_default_port(scheme, host)))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;

    use super::same;

    #[test]
    fn repeated_and_non_ascii_headers_are_rejected() {
        let may = |headers: &[(&str, &[u8])]| {
            let mut request = TestRequest::post();
            for (name, value) in headers {
                request = request.append_header((*name, HeaderValue::from_bytes(value).unwrap()));
            }
            same(request.to_http_request().headers(), None).is_ok()
        };
        let host = ("host", &b"fleet.example"[..]);
        let origin = ("origin", &b"https://fleet.example"[..]);
        assert!(may(&[host, origin]));
        for strange in [
            ("origin", &b"https://evil.example"[..]),
            ("origin", b"https://fleet.example"),
            ("host", b"evil.example"),
            ("sec-fetch-site", b"cross-site"),
        ] {
            assert!(!may(&[host, origin, strange]), "{strange:?} as well");
            assert!(!may(&[strange, host, origin]), "{strange:?} first");
        }
        assert!(!may(&[host, ("origin", b"https://\xe9vil.example")]));
        assert!(!may(&[("host", b"\xff"), origin]));
        assert!(!may(&[host, ("sec-fetch-site", b"same-origin"), ("sec-fetch-site", b"cross-site")]));
        assert!(!may(&[host, ("sec-fetch-site", b"\xff")]));
    }

    #[test]
    fn only_own_pages_and_scripts_may_send_requests() {
        let may_on = |own, headers: &[(&str, &str)]| {
            let mut request = TestRequest::post();
            for header in headers {
                request = request.append_header(*header);
            }
            same(request.to_http_request().headers(), own).is_ok()
        };
        let may = |headers: &[(&str, &str)]| may_on(None, headers);
        let host = ("host", "fleet.example");
        assert!(may(&[host]));
        for origin in ["https://fleet.example", "https://fleet.example:443", "http://Fleet.example:80"] {
            assert!(may(&[host, ("origin", origin)]), "{origin}");
        }
        assert!(may(&[("host", "fleet.example:443"), ("origin", "https://fleet.example")]));
        for origin in ["null", "", "https://evil.example", "https://fleet.example:8443", "https://fleet.example.evil"] {
            assert!(!may(&[host, ("origin", origin)]), "{origin}");
        }
        assert!(may(&[host, ("sec-fetch-site", "same-origin")]));
        for site in ["cross-site", "same-site", "none", ""] {
            assert!(!may(&[host, ("sec-fetch-site", site)]), "{site}");
        }
        // The proxy sends its own `Host`.
        let inside = ("host", "monitor:5440");
        let own = Some("https://Fleet.example/m/");
        assert!(may_on(own, &[inside, ("origin", "https://fleet.example")]));
        assert!(may_on(own, &[inside, ("origin", "https://fleet.example:443")]));
        for origin in ["http://fleet.example", "https://fleet.example:8443", "https://evil.example", "https://"] {
            assert!(!may_on(own, &[inside, ("origin", origin)]), "{origin}");
        }
        assert!(!may_on(own, &[inside, ("origin", "https://fleet.example"), ("sec-fetch-site", "cross-site")]));
        assert!(!may_on(Some("fleet"), &[inside, ("origin", "https://fleet.example")]));
        assert!(!may(&[host, ("origin", "https://fleet.example"), ("origin", "https://evil.example")]));
    }

    #[test]
    fn an_error_contains_the_headers_and_the_setting() {
        let why = |own, headers: &[(&str, &[u8])]| {
            let mut request = TestRequest::post();
            for (name, value) in headers {
                request = request.append_header((*name, HeaderValue::from_bytes(value).unwrap()));
            }
            same(request.to_http_request().headers(), own).unwrap_err().to_string()
        };
        let host = ("host", &b"fleet.example"[..]);
        let told = why(None, &[host, ("origin", b"http://fleet.example:8080")]);
        for part in ["\"http://fleet.example:8080\"", "\"fleet.example\"", "SERVER_URL is not set"] {
            assert!(told.contains(part), "{told}");
        }
        let told = why(Some("https://other.example"), &[("origin", b"https://fleet.example")]);
        assert!(told.contains("Host nothing") && told.contains("\"https://other.example\""), "{told}");
        // A header that is not text must not count as absent.
        assert!(why(None, &[host, ("origin", b"https://fl\xe9et.example")]).contains("Origin held"));
        assert!(why(None, &[host, ("sec-fetch-site", b"cross-site")]).contains("Sec-Fetch-Site held \"cross-site\""));
    }
}
