//! Errors of HTTP and SMTP clients, which wrap the cause several times.

use std::error::Error;

use crate::printable::excerpt;
use crate::tls::{self, TlsSettings};

/// Maximum length of a cause in a message, characters.
const LONGEST: usize = 120;

/// `error` and its sources, outermost first.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = match error.downcast_ref::<std::io::Error>() {
            // `source()` of an I/O error skips the error that it wraps.
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
        Some(error)
    })
}

/// Explanation of a TLS failure with its remedy, if `error` is one. Retries fail until a certificate or a setting is
/// changed.
#[must_use]
pub fn tls_error(error: &(dyn Error + 'static), settings: &TlsSettings) -> Option<String> {
    let of_tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()).map(ToString::to_string);
    let said = of_tls.clone().unwrap_or_else(|| root_cause(error));
    match tls::explain(&said, settings) {
        Some(failure) => Some(failure.append_to("TLS failed")),
        None => of_tls.map(|said| format!("TLS failed: {said}")),
    }
}

/// Innermost source, as one line.
#[must_use]
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(|cause| excerpt(&cause.to_string(), LONGEST)).unwrap_or_default()
}
