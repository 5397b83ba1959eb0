//! Whether a request comes from one of this monitor's own pages, or from no page at all.

use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use crate::web::problem::Problem;

/// Browsers say where a request comes from; from another site's page it is refused.
///
/// # Errors
/// When another site's page asks.
pub(super) fn same(headers: &HeaderMap) -> Result<(), Problem> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let foreign = || Err(Problem::Forbidden("a page of another site may not do this".to_owned()));
    if let Some(site) = header("sec-fetch-site") {
        return if site == "same-origin" { Ok(()) } else { foreign() };
    }
    let Some(origin) = header(ORIGIN.as_str()) else { return Ok(()) };
    let Some((scheme, host)) = origin.split_once("://") else { return foreign() };
    let default = if scheme == "https" { ":443" } else { ":80" };
    let bare = |host: &str| host.strip_suffix(default).unwrap_or(host).to_ascii_lowercase();
    let own = header(HOST.as_str()).map(bare);
    if !host.is_empty() && own == Some(bare(host)) { Ok(()) } else { foreign() }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::same;

    #[test]
    fn only_its_own_pages_and_no_pages_at_all_may_ask() {
        let may = |headers: &[(&str, &str)]| {
            let mut request = TestRequest::post();
            for header in headers {
                request = request.append_header(*header);
            }
            same(request.to_http_request().headers()).is_ok()
        };
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
    }
}
