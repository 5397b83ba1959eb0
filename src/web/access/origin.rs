//! Whether a request comes from one of this monitor's own pages, or from no page at all.

use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use crate::web::problem::Problem;

/// Browsers say where a request comes from; from another site's page it is refused. Behind a proxy
/// that asks by another `Host`, `own` (`SERVER_URL`) says what the site is called.
///
/// # Errors
/// When another site's page asks.
pub(super) fn same(headers: &HeaderMap, own: Option<&str>) -> Result<(), Problem> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let foreign = || Err(Problem::Forbidden("cross-site requests are not allowed".to_owned()));
    if let Some(site) = header("sec-fetch-site") {
        return if site == "same-origin" { Ok(()) } else { foreign() };
    }
    let Some(origin) = header(ORIGIN.as_str()) else { return Ok(()) };
    let Some((scheme, host)) = origin.split_once("://") else { return foreign() };
    let asked = header(HOST.as_str()).map(|asked| without_default_port(scheme, asked));
    let host = without_default_port(scheme, host);
    let is_own = || own.and_then(site).is_some_and(|own| own == (scheme.to_ascii_lowercase(), host.clone()));
    if !host.is_empty() && (asked.as_ref() == Some(&host) || is_own()) { Ok(()) } else { foreign() }
}

fn without_default_port(scheme: &str, host: &str) -> String {
    let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    host.strip_suffix(default).unwrap_or(host).to_ascii_lowercase()
}

/// Scheme and host of an address.
fn site(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    Some((scheme.to_ascii_lowercase(), without_default_port(scheme, host)))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::same;

    #[test]
    fn only_its_own_pages_and_no_pages_at_all_may_ask() {
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
        // A proxy asks by a name of its own.
        let inside = ("host", "monitor:5440");
        let own = Some("https://Fleet.example/m/");
        assert!(may_on(own, &[inside, ("origin", "https://fleet.example")]));
        assert!(may_on(own, &[inside, ("origin", "https://fleet.example:443")]));
        for origin in ["http://fleet.example", "https://fleet.example:8443", "https://evil.example", "https://"] {
            assert!(!may_on(own, &[inside, ("origin", origin)]), "{origin}");
        }
        assert!(!may_on(own, &[inside, ("origin", "https://fleet.example"), ("sec-fetch-site", "cross-site")]));
        assert!(!may_on(Some("fleet"), &[inside, ("origin", "https://fleet.example")]));
    }
}
