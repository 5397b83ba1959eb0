//! TLS: reads certificates of the settings, and explains failed handshakes with a remedy.
//!
//! Failures are recognized by the text of rustls or of the server, because the clients of Redis, Postgres, SMTP and
//! HTTP return errors as text.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::environment;

/// Bundles of all public CAs have a quarter of this, bytes.
const LARGEST_PEM: u64 = 1 << 20;

/// Settings that configure the TLS of a connection, for remedies.
#[derive(Debug, Clone, Copy)]
pub struct TlsSettings {
    /// Setting with trusted CA certificates.
    pub authorities: &'static str,
    /// Settings with the client certificate and key; empty if there are none.
    pub client: &'static str,
    /// How to skip verification of the host name; empty if not possible.
    pub any_name: &'static str,
    /// How to connect without TLS; empty if there is no setting.
    pub without: &'static str,
}

/// Redis, for the monitor and workers.
pub const REDIS: TlsSettings = TlsSettings {
    authorities: "REDIS_TLS_CA_FILE",
    client: "REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE",
    any_name: "ssl_check_hostname=false in REDIS_URL",
    without: "redis:// instead of rediss:// (or REDIS_TLS=no)",
};

/// Postgres.
pub const POSTGRES: TlsSettings = TlsSettings {
    authorities: "POSTGRES_SSLROOTCERT (or sslrootcert in DATABASE_URL)",
    client: "POSTGRES_SSLCERT and POSTGRES_SSLKEY (or sslcert and sslkey in DATABASE_URL)",
    any_name: "POSTGRES_SSLMODE=verify-ca (or sslmode in DATABASE_URL)",
    without: "POSTGRES_SSLMODE=prefer or disable (or sslmode in DATABASE_URL)",
};

/// Mail server.
pub const SMTP: TlsSettings = TlsSettings {
    authorities: "SMTP_CA_FILE, or its host name as SMTP_ACCEPT_ANY_CERTIFICATE_FROM,",
    client: "",
    any_name: "",
    without: "SMTP_USE_TLS=starttls (or false)",
};

/// Webhooks over HTTPS.
pub const WEBHOOK: TlsSettings =
    TlsSettings { authorities: "ALERT_WEBHOOK_CA_FILE", client: "", any_name: "", without: "http:// in the address" };

/// Identity provider.
pub const OIDC: TlsSettings =
    TlsSettings { authorities: "MONITOR_OIDC_CA_FILE", client: "", any_name: "", without: "" };

/// Why a TLS connection failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFailure {
    /// The cause.
    pub what: &'static str,
    /// The remedy.
    pub remedy: String,
}

impl TlsFailure {
    /// The original error, followed by cause and remedy.
    #[must_use]
    pub fn append_to(&self, said: &str) -> String {
        format!("{said}: {}. {}", self.what, self.remedy)
    }
}

/// Explains an error; `None` if it is not about TLS.
#[must_use]
pub fn explain(said: &str, settings: &TlsSettings) -> Option<TlsFailure> {
    let has = |part: &str| said.contains(part);
    let alert = |name: &str| said.contains(&format!("received fatal alert: {name}"));
    let TlsSettings { authorities, client, any_name, without } = settings;
    let own_certificate = |verb: &str| match client.is_empty() {
        true => "No client certificate can be set for this server.".to_owned(),
        false => format!("{verb} {client}."),
    };
    let failure = |what, remedy: String| Some(TlsFailure { what, remedy });
    if has("CaUsedAsEndEntity") {
        failure(
            "the server uses a CA certificate as its own (self-signed, CA:TRUE)",
            format!(
                "Issue a server certificate (basicConstraints CA:FALSE, subjectAltName) and set {authorities} to the \
                 CA file."
            ),
        )
    } else if has("UnknownIssuer") {
        failure(
            "the server's certificate is signed by an untrusted CA",
            format!("Set {authorities} to a PEM file with the CA certificate."),
        )
    } else if has("invalid peer certificate: BadSignature") {
        failure(
            "the server's certificate is not signed by the trusted CA of that name",
            format!("Set {authorities} to a PEM file with the CA certificate that signed it."),
        )
    } else if has("not valid for name") || has("NotValidForName") {
        let unchecked = if any_name.is_empty() { String::new() } else { format!(", or set {any_name}") };
        failure(
            "the server's certificate is for another name",
            format!("Connect by a name that is in it, reissue it with this name as subjectAltName{unchecked}."),
        )
    } else if has("certificate expired") || has("invalid peer certificate: Expired") {
        failure(
            "the server's certificate has expired",
            "Renew it on the server; check this machine's clock.".to_owned(),
        )
    } else if has("not valid yet") || has("NotValidYet") {
        failure(
            "the server's certificate is not valid yet",
            "Check the clocks of both machines, or wait until it is.".to_owned(),
        )
    } else if has("UnsupportedCertVersion") {
        failure(
            "the server's certificate is X.509 version 1, which cannot be verified",
            "Reissue it as version 3 with a subjectAltName (openssl x509 -req -extfile).".to_owned(),
        )
    } else if has("extended key usage") || has("InvalidPurpose") {
        failure(
            "the server's certificate is not meant for servers",
            "Reissue it with extendedKeyUsage serverAuth.".to_owned(),
        )
    } else if has("invalid peer certificate") {
        failure(
            "the server's certificate cannot be used",
            "Look at it with openssl s_client -showcerts, and reissue it.".to_owned(),
        )
    } else if alert("CertificateRequired") || has("requires a valid client certificate") {
        failure("the server requires a client certificate", own_certificate("Set"))
    } else if alert("UnknownCA") {
        failure(
            "the server does not trust the CA of the client certificate",
            own_certificate("Add its CA to the CA file of the server, or change"),
        )
    } else if alert("BadCertificate")
        || alert("CertificateUnknown")
        || alert("UnsupportedCertificate")
        || alert("CertificateExpired")
        || alert("CertificateRevoked")
        || has("certificate authentication failed for user")
    {
        failure(
            "the server refuses the client certificate",
            own_certificate("Have it reissued for this user (expiry, common name, clientAuth), and set"),
        )
    } else if alert("HandshakeFailure") {
        failure(
            "the server refuses the handshake: it requires a client certificate, or shares no cipher with this client",
            own_certificate("If it requires a certificate, set"),
        )
    } else if alert("ProtocolVersion") || has("peer is incompatible") || alert("InsufficientSecurity") {
        failure("the server offers no version of TLS that is still secure", "Turn on TLS 1.2 or 1.3 there.".to_owned())
    } else if alert("UnrecognizedName") {
        failure(
            "the server does not know the name by which it is addressed",
            "Connect by the name that it expects.".to_owned(),
        )
    } else if has("corrupt message of type") || has("unexpected message: got") || has("server does not support TLS") {
        let without = if without.is_empty() { String::new() } else { format!(", or connect without: {without}") };
        failure("the server does not speak TLS on this port", format!("Turn TLS on there, set its TLS port{without}."))
    } else if has("no encryption") || has("SSL off") {
        failure(
            "the server accepts this login with TLS only",
            "Set POSTGRES_SSLMODE=require, or better verify-full (or sslmode in DATABASE_URL).".to_owned(),
        )
    } else {
        None
    }
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// The expected value, for the error of a setting.
pub fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("a PEM file with certificates (BEGIN CERTIFICATE)".to_owned()),
    }
}

/// Reads the CA certificates of a PEM file.
///
/// # Errors
/// As [`certificates`].
pub fn authorities(path: &str) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| format!("CA certificates ({error})"))?;
    }
    Ok(store)
}

/// Client certificate with its chain, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The file that is unusable, with the expected value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadIdentity {
    /// The certificate.
    Certificate(String),
    /// The key.
    Key(String),
}

/// Reads a client certificate and its key.
///
/// # Errors
/// Which file is unusable.
pub fn identity(certificate: &str, key: &str) -> Result<Identity, BadIdentity> {
    let chain = certificates(certificate).map_err(BadIdentity::Certificate)?;
    let pem = read(key).map_err(BadIdentity::Key)?;
    let not_a_key = || BadIdentity::Key("a PEM file with an unencrypted private key".to_owned());
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| not_a_key())?;
    let provider = rustls::crypto::ring::default_provider();
    match rustls::sign::CertifiedKey::from_der(chain.clone(), private.clone_key(), &provider) {
        Ok(_) => Ok((chain, private)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(BadIdentity::Key(format!("the private key of the certificate in {certificate}")))
        }
        // The key of a version 1 certificate cannot be checked.
        Err(rustls::Error::InvalidCertificate(_)) => Ok((chain, private)),
        Err(_) => Err(not_a_key()),
    }
}

/// Reads a file.
///
/// # Errors
/// The expected value, for the error of a setting.
pub fn read(path: &str) -> Result<Vec<u8>, String> {
    environment::read_file(Path::new(path), LARGEST_PEM).map_err(|expected| format!("a PEM file: {expected}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{AlertDescription, CertificateError, Error, OtherError};

    use super::*;

    /// The error as a client returns it.
    fn said(error: Error) -> String {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error).to_string()
    }

    #[test]
    fn handshake_failures_are_explained_with_a_remedy() {
        let seconds = |n| UnixTime::since_unix_epoch(std::time::Duration::from_secs(n));
        let other = |text: &str| CertificateError::Other(OtherError(Arc::new(std::io::Error::other(text.to_owned()))));
        let certificate = |error: CertificateError| said(Error::InvalidCertificate(error));
        let alert = |alert: AlertDescription| said(Error::AlertReceived(alert));
        let name = ServerName::try_from("db.example").unwrap();
        for (text, what, remedy) in [
            (certificate(CertificateError::UnknownIssuer), "signed by an untrusted CA", "POSTGRES_SSLROOTCERT"),
            (
                certificate(CertificateError::NotValidForNameContext { expected: name, presented: Vec::new() }),
                "another name",
                "verify-ca",
            ),
            (certificate(CertificateError::BadSignature), "of that name", "POSTGRES_SSLROOTCERT"),
            (certificate(CertificateError::NotValidForName), "another name", "subjectAltName"),
            (
                certificate(CertificateError::ExpiredContext { time: seconds(9), not_after: seconds(5) }),
                "expired",
                "Renew",
            ),
            (certificate(CertificateError::Expired), "expired", "Renew"),
            (
                certificate(CertificateError::NotValidYetContext { time: seconds(1), not_before: seconds(5) }),
                "not valid yet",
                "clocks",
            ),
            (certificate(other("UnsupportedCertVersion")), "version 1", "version 3"),
            (certificate(other("CaUsedAsEndEntity")), "CA certificate as its own", "CA:FALSE"),
            (certificate(CertificateError::BadEncoding), "cannot be used", "openssl"),
            (alert(AlertDescription::CertificateRequired), "requires a client certificate", "POSTGRES_SSLKEY"),
            (alert(AlertDescription::UnknownCA), "does not trust", "POSTGRES_SSLCERT"),
            (alert(AlertDescription::CertificateExpired), "refuses the client", "POSTGRES_SSLCERT"),
            (alert(AlertDescription::HandshakeFailure), "requires a client certificate, or", "POSTGRES_SSLCERT"),
            (alert(AlertDescription::ProtocolVersion), "no version of TLS", "TLS 1.2"),
            (
                said(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
                "does not speak TLS",
                "POSTGRES_SSLMODE",
            ),
            ("server does not support TLS".to_owned(), "does not speak TLS", "POSTGRES_SSLMODE"),
            ("connection requires a valid client certificate (28000)".to_owned(), "requires", "POSTGRES_SSLCERT"),
            (
                "no pg_hba.conf entry for host \"1.2.3.4\", user \"u\", database \"d\", no encryption (28000)"
                    .to_owned(),
                "with TLS only",
                "sslmode",
            ),
        ] {
            let failure = explain(&text, &POSTGRES).unwrap_or_else(|| panic!("nothing about {text}"));
            assert!(failure.what.contains(what) && failure.remedy.contains(remedy), "{text}: {failure:?}");
        }
        for text in ["connection refused", "password authentication failed for user \"x\" (28P01)", "timed out"] {
            assert_eq!(explain(text, &POSTGRES), None, "{text}");
        }
    }

    #[test]
    fn no_client_certificate_is_suggested_without_a_setting_for_it() {
        let text = said(Error::AlertReceived(AlertDescription::CertificateRequired));
        let failure = explain(&text, &SMTP).unwrap();
        assert!(!failure.remedy.contains("Set "), "{failure:?}");
        assert!(explain(&text, &REDIS).unwrap().remedy.contains("REDIS_TLS_CERT_FILE"));
    }
}
