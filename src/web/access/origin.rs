//! Whether a request comes from one of this monitor's own pages, or from no page at all.

use actix_web::http::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};

use crate::web::problem::Problem;

/// Browsers say where a request comes from; from another site's page it is refused. Behind a proxy
/// that asks by another `Host`, `own` (`SERVER_URL`) says what the site is called.
///
/// # Errors
/// When another site's page asks.
pub(super) fn same(headers: &HeaderMap, own: Option<&str>) -> Result<(), Problem> {
    let foreign = |why: &str| Err(Problem::Forbidden(format!("cross-site requests are not allowed ({why})")));
    // All that are there, as bytes: one that cannot be read is not one that is absent.
    let mut sites = headers.get_all("sec-fetch-site").peekable();
    if sites.peek().is_some() {
        return match sites.all(|site| site.as_bytes() == b"same-origin") {
            true => Ok(()),
            false => foreign("Sec-Fetch-Site is not same-origin"),
        };
    }
    let origin = match single(headers, &ORIGIN) {
        Single::Absent => return Ok(()),
        Single::Text(origin) => origin,
        Single::Ambiguous => return foreign("Origin is there twice, or is no text"),
    };
    let Some((scheme, host)) = origin.split_once("://") else { return foreign("Origin is no address") };
    let asked = match single(headers, &HOST) {
        Single::Absent => None,
        Single::Text(asked) => Some(without_default_port(scheme, asked)),
        Single::Ambiguous => return foreign("Host is there twice, or is no text"),
    };
    let host = without_default_port(scheme, host);
    let is_own = || own.and_then(site).is_some_and(|own| own == (scheme.to_ascii_lowercase(), host.clone()));
    if !host.is_empty() && (asked.as_ref() == Some(&host) || is_own()) {
        Ok(())
    } else {
        foreign("Origin is neither Host nor SERVER_URL")
    }
}

/// A header of which there may be one.
pub(super) enum Single<'a> {
    /// It is not there.
    Absent,
    /// Its text.
    Text(&'a str),
    /// It is there more than once, or holds something else than visible ASCII.
    Ambiguous,
}

/// The only value of a header.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Single<'a> {
    let mut all = headers.get_all(name);
    match (all.next().map(HeaderValue::to_str), all.next()) {
        (None, _) => Single::Absent,
        (Some(Ok(text)), None) => Single::Text(text),
        _ => Single::Ambiguous,
    }
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
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;

    use super::same;

    #[test]
    fn what_is_there_twice_or_is_no_text_is_refused() {
        let may = |headers: &[(&str, &[u8])]| {
            let mut request = TestRequest::post();
            for (name, value) in headers {
                request = request.append_header((*name, HeaderValue::from_bytes(value).unwrap()));
            }
            same(request.to_http_request().headers(), None).is_ok()
        };
        let (host, origin): ((&str, &[u8]), (&str, &[u8])) =
            (("host", b"fleet.example"), ("origin", b"https://fleet.example"));
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
