//! Parses the Postgres URL (libpq syntax) and builds the TLS configuration of the connections. The parser that checks the URL at
//! the start is the one that connects.
//!
//! Every parameter is honoured or rejected by name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::environment::{self, percent_decoded, percent_encoded};
use crate::tls::{self, BadIdentity};

/// Value of `sslrootcert` that selects the system's certificate authorities.
const SYSTEM: &str = "system";

/// Address of a Postgres server, with the TLS settings.
#[derive(Clone)]
pub struct Address {
    /// Configuration of the driver.
    pub config: Config,
    /// No `sslmode` was given that allows connections without encryption: over one to another machine, the password is
    /// not sent as it is.
    pub keeps_password: bool,
    verify: Verify,
    authorities: Authorities,
    identity: Option<(String, String)>,
    only_tls13: bool,
}

/// How much of the server certificate is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// Trusted certificate authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Authorities {
    OfThisMachine,
    File(String),
}

/// Error of an invalid address: the parameter and the expected value. Never contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(pub String);

/// Parameters that the driver accepts under the same name.
const OF_THE_DRIVER: [&str; 15] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "channel_binding",
];

/// Parses an address, `postgres://…` or `host=… user=…`.
///
/// # Errors
/// If a parameter is invalid or not supported.
pub fn parse(text: &str) -> Result<Address, BadAddress> {
    if let Some(expected) = environment::enclosed(text) {
        return Err(BadAddress(expected.to_owned()));
    }
    let (base, parameters) = split(text)?;
    let mut of_driver: Vec<(String, String)> = Vec::new();
    let mut mode: Option<String> = None;
    let (mut root, mut certificate, mut key) = (None, None, None);
    let mut only_tls13 = false;
    for (name, value) in parameters {
        let expected = |what: &str| Err(BadAddress(format!("{name} to be {what}, not {value:?}")));
        match name.as_str() {
            "sslmode" => match value.as_str() {
                "disable" | "prefer" | "require" | "verify-ca" | "verify-full" => mode = Some(value),
                _ => return expected("disable, prefer, require, verify-ca or verify-full"),
            },
            "sslrootcert" => root = (!value.is_empty()).then_some(value),
            "sslcert" => certificate = (!value.is_empty()).then_some(value),
            "sslkey" => key = (!value.is_empty()).then_some(value),
            "target_session_attrs" => match value.as_str() {
                "any" | "read-write" | "read-only" => of_driver.push((name, value)),
                // A server that accepts writes is not a standby.
                "primary" => of_driver.push((name, "read-write".to_owned())),
                _ => return expected("any, read-write, primary or read-only"),
            },
            // The first two result in a connection without GSSAPI.
            "gssencmode" => match value.as_str() {
                "disable" | "prefer" => {}
                _ => return expected("disable or prefer (GSSAPI encryption is not supported)"),
            },
            "ssl_min_protocol_version" => match value.as_str() {
                "TLSv1" | "TLSv1.1" | "TLSv1.2" => {}
                "TLSv1.3" => only_tls13 = true,
                _ => return expected("TLSv1.2 or TLSv1.3"),
            },
            // The address may have options, to which the monitor adds its own.
            "options" => match of_driver.iter_mut().find(|(known, _)| known == "options") {
                Some((_, options)) => *options = format!("{options} {value}"),
                None => of_driver.push((name, value)),
            },
            "keepalives_count" => of_driver.push(("keepalives_retries".to_owned(), value)),
            "client_encoding" if ["utf8", "utf-8", "auto"].contains(&value.to_lowercase().as_str()) => {}
            "sslcompression" if value == "0" => {}
            // What connects knows these values only.
            "sslnegotiation" if value == "postgres" => {}
            "load_balance_hosts" if value == "disable" => {}
            "sslsni" if value == "1" => {}
            "fallback_application_name" => {}
            name if OF_THE_DRIVER.contains(&name) => of_driver.push((name.to_owned(), value)),
            name => return Err(unsupported(name)),
        }
    }
    let config = config(base, &of_driver)?;
    let (verify, authorities) = verification(mode.as_deref(), root)?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(BadAddress("sslkey beside sslcert".to_owned())),
        (None, Some(_)) => return Err(BadAddress("sslcert beside sslkey".to_owned())),
    };
    if identity.is_some() && mode.as_deref() == Some("disable") {
        return Err(BadAddress("no sslcert with sslmode=disable, or another sslmode".to_owned()));
    }
    let keeps_password = !matches!(mode.as_deref(), Some("disable" | "prefer"));
    let mut address = Address { config, keeps_password, verify, authorities, identity, only_tls13 };
    address.config.ssl_mode(match mode.as_deref() {
        // As in libpq: connections over Unix sockets are not encrypted.
        _ if address.is_local() => SslMode::Disable,
        Some("disable") => SslMode::Disable,
        None | Some("prefer") if verify == Verify::Nothing => SslMode::Prefer,
        _ => SslMode::Require,
    });
    Ok(address)
}

/// Returns the error for an unsupported parameter, with the alternative if there is one.
fn unsupported(name: &str) -> BadAddress {
    let hint = match name {
        "ssl" => "; write sslmode=require or verify-full",
        "sslpassword" => "; decrypt the key",
        "sslcrl" | "sslcrldir" => "; revocation lists are not supported",
        "passfile" | "service" | "servicefile" => {
            "; write the address out, or use POSTGRES_HOST, POSTGRES_USER and POSTGRES_PASSWORD_FILE instead of it"
        }
        "pgbouncer"
        | "connection_limit"
        | "pool_timeout"
        | "schema"
        | "statement_cache_size"
        | "sslMode"
        | "currentSchema"
        | "prepareThreshold"
        | "rejectUnauthorized" => "; it is one of another client library",
        _ => "",
    };
    // Text that is not a parameter name may be part of a password.
    let is_name =
        !name.is_empty() && name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let shown = if is_name { name } else { "of that name (percent-encode @ : / ? # in a password)" };
    BadAddress(format!("no parameter {shown}, which is not supported{hint}"))
}

/// The URL before its parameters; empty for `name=value` pairs.
type Base<'a> = &'a str;

fn split(text: &str) -> Result<(Base<'_>, Vec<(String, String)>), BadAddress> {
    if !text.contains("://") {
        return Ok(("", pairs(text)?));
    }
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    let Some(rest) = rest else {
        let scheme = text.split("://").next().unwrap_or_default();
        let hint = if scheme.contains('+') { " (what follows the + is for SQLAlchemy)" } else { "" };
        return Err(BadAddress(format!("an address that begins with postgres://{hint}")));
    };
    // The driver takes everything before the first @ as user and password.
    let from = text.len() - rest.len() + rest.find('@').unwrap_or(0);
    let Some(at) = text.get(from..).and_then(|tail| tail.find('?')).map(|at| from + at) else {
        return Ok((text, Vec::new()));
    };
    let (base, query) = text.split_at(at);
    let mut parameters = Vec::new();
    for pair in query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty()) {
        let malformed = || BadAddress("parameters such as ?sslmode=require, separated by &".to_owned());
        let (name, value) = pair.split_once('=').ok_or_else(malformed)?;
        let decoded = percent_decoded(name).zip(percent_decoded(value));
        parameters.push(decoded.ok_or_else(malformed)?);
    }
    Ok((base, parameters))
}

/// Parses `name=value` pairs like libpq: values may be in single quotes, `\` escapes the next character.
fn pairs(text: &str) -> Result<Vec<(String, String)>, BadAddress> {
    let malformed = || BadAddress("postgres://user:password@host/database, or host=… user=… dbname=…".to_owned());
    let mut pairs = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return if pairs.is_empty() { Err(malformed()) } else { Ok(pairs) };
        }
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.next() != Some('=') {
            return Err(malformed());
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = rest.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match rest.next() {
                Some('\\') => value.extend(rest.next()),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(malformed()),
                None => break,
            }
        }
        pairs.push((name, value));
    }
}

fn config(base: Base<'_>, parameters: &[(String, String)]) -> Result<Config, BadAddress> {
    let text = if base.is_empty() {
        let pairs: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect();
        pairs.join(" ")
    } else {
        // The driver would add the parameter to the URL's own hosts and ports; libpq replaces them.
        let own = base.parse::<Config>().ok();
        let has_own = |name: &str| match name {
            "host" => own.as_ref().is_some_and(|own| !own.get_hosts().is_empty()),
            "port" => own.as_ref().is_some_and(|own| !own.get_ports().is_empty()),
            _ => false,
        };
        if let Some((name, _)) = parameters.iter().find(|(name, _)| has_own(name)) {
            return Err(BadAddress(format!("one {name}: the URL contains one, and {name}= names another")));
        }
        // In a URL, the driver takes a list of hosts for one host.
        let each = |(name, value): &(String, String)| -> Vec<String> {
            let values = if name == "host" { value.split(',').collect() } else { vec![value.as_str()] };
            values.iter().map(|value| format!("{name}={}", percent_encoded(value))).collect()
        };
        let pairs: Vec<String> = parameters.iter().flat_map(each).collect();
        format!("{base}?{}", pairs.join("&"))
    };
    let config: Config = text.parse().map_err(|error: tokio_postgres::Error| {
        // The driver's error contains the parameter name but no value.
        let why = std::error::Error::source(&error).map(|why| format!(" ({why})")).unwrap_or_default();
        BadAddress(format!("an address such as postgres://user:password@localhost:5432/postgres{why}"))
    })?;
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let empty = hosts.iter().any(|host| matches!(host, Host::Tcp(name) if name.is_empty()));
    if empty || (hosts.is_empty() && addresses.is_empty()) {
        return Err(BadAddress("a host, as in postgres://user@localhost/postgres".to_owned()));
    }
    // Part of a password: the driver takes everything before the first @ as user and password. It must not be shown.
    if hosts.iter().any(|host| matches!(host, Host::Tcp(name) if name.contains(['@', '/', '?', '#', ' ']))) {
        return Err(BadAddress("an address with one @ (percent-encode @ : / ? # in a password: @ is %40)".to_owned()));
    }
    if hosts.iter().any(|host| matches!(host, Host::Tcp(name) if !name.is_ascii())) {
        return Err(BadAddress("an ASCII host name (the xn-- form of a name with other letters)".to_owned()));
    }
    let number = hosts.len().max(addresses.len());
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(BadAddress("as many hostaddr as host".to_owned()));
    }
    if config.get_ports().len() > 1 && config.get_ports().len() != number {
        return Err(BadAddress("one port, or one for each host".to_owned()));
    }
    if config.get_ports().contains(&0) {
        return Err(BadAddress("port to be from 1 to 65535".to_owned()));
    }
    Ok(config)
}

/// As in libpq: with a named authority, `require` verifies it; `system` requires `verify-full`, which is then the default.
fn verification(mode: Option<&str>, root: Option<String>) -> Result<(Verify, Authorities), BadAddress> {
    let weak = |mode: &str, root: &str| {
        Err(BadAddress(format!("sslmode=verify-full beside sslrootcert={root}, not sslmode={mode}, which ignores it")))
    };
    match (mode, root) {
        (Some("verify-full"), None) => Ok((Verify::AuthorityAndName, Authorities::OfThisMachine)),
        (Some("verify-ca"), None) => Ok((Verify::Authority, Authorities::OfThisMachine)),
        (_, None) => Ok((Verify::Nothing, Authorities::OfThisMachine)),
        (None | Some("verify-full"), Some(root)) if root == SYSTEM => {
            Ok((Verify::AuthorityAndName, Authorities::OfThisMachine))
        }
        (Some(mode), Some(root)) if root == SYSTEM => weak(mode, SYSTEM),
        (None | Some("verify-full"), Some(root)) => Ok((Verify::AuthorityAndName, Authorities::File(root))),
        (Some("verify-ca" | "require"), Some(root)) => Ok((Verify::Authority, Authorities::File(root))),
        (Some(mode), Some(_)) => weak(mode, "FILE"),
    }
}

/// Returns the parameter `wanted`; the last one if it is repeated.
#[must_use]
pub fn parameter(text: &str, wanted: &str) -> Option<String> {
    let (_, parameters) = split(text).ok()?;
    parameters.into_iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value)
}

/// Returns the address with an additional parameter.
#[must_use]
pub fn with_parameter(text: &str, name: &str, value: &str) -> String {
    if text.contains("://") {
        let join = if split(text).is_ok_and(|(base, _)| base.len() < text.len()) { '&' } else { '?' };
        format!("{text}{join}{name}={}", percent_encoded(value))
    } else {
        format!("{text} {name}={}", quoted(value))
    }
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl Address {
    /// Returns whether every host is a Unix socket.
    fn is_local(&self) -> bool {
        let hosts = self.config.get_hosts();
        !hosts.is_empty() && hosts.iter().all(|host| matches!(host, Host::Unix(_)))
    }

    /// Returns whether connections are never encrypted.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Disable
    }

    /// Returns the TLS configuration. Reads the certificate files, so that renewed certificates are used by the next connection.
    ///
    /// # Errors
    /// The parameter whose file cannot be used.
    pub fn tls(&self) -> Result<ClientConfig, BadAddress> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = if self.only_tls13 { &[&rustls::version::TLS13][..] } else { rustls::DEFAULT_VERSIONS };
        let unusable = |error: &dyn std::fmt::Display| BadAddress(format!("TLS that can be used ({error})"));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| unusable(&error))?;
        let verifier: Arc<dyn ServerCertVerifier> = if self.verify == Verify::Nothing {
            Arc::new(AnyCertificate(provider.signature_verification_algorithms.supported_schemes()))
        } else {
            let (roots, trusted) = self.roots()?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| unusable(&error))?;
            Arc::new(Verifier { verifier, trusted, name: self.verify == Verify::AuthorityAndName })
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let bad = |parameter: &str, path: &str, expected: String| {
            BadAddress(format!("{parameter} ({path}) to be {expected}"))
        };
        let (chain, private) = tls::identity(certificate, key).map_err(|fault| match fault {
            BadIdentity::Certificate(expected) => bad("sslcert", certificate, expected),
            BadIdentity::Key(expected) => bad("sslkey", key, expected),
        })?;
        builder.with_client_auth_cert(chain, private).map_err(|error| unusable(&error))
    }

    /// Returns the authorities, and the certificates that are trusted as server certificates.
    fn roots(&self) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), BadAddress> {
        match &self.authorities {
            Authorities::File(path) => {
                let bad = |expected| BadAddress(format!("sslrootcert ({path}) to be {expected}"));
                Ok((tls::authorities(path).map_err(bad)?, tls::certificates(path).map_err(bad)?))
            }
            Authorities::OfThisMachine => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(BadAddress("sslrootcert, since this machine has no CA certificates".to_owned()));
                }
                Ok((roots, Vec::new()))
            }
        }
    }
}

/// Verifies the certificate chain, and the host name if required.
#[derive(Debug)]
struct Verifier {
    verifier: Arc<WebPkiServerVerifier>,
    /// Certificates in the authorities file are also trusted as server certificates, as in OpenSSL.
    trusted: Vec<CertificateDer<'static>>,
    name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        match self.verifier.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The host name is checked last.
            Err(InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            // The certificate is currently valid; otherwise the error would be different.
            Err(InvalidCertificate(CertificateError::Other(error)))
                if format!("{error:?}").contains("CaUsedAsEndEntity")
                    && self.trusted.iter().any(|own| own == certificate) =>
            {
                if self.name {
                    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// `sslmode=prefer` and `require` encrypt without verifying the server, as in libpq: many servers have a self-signed certificate,
/// some of X.509 version 1, whose signatures rustls cannot read. An attacker who can modify the traffic can also present a
/// certificate, so verifying signatures would add nothing.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (SslMode, Verify, Authorities) {
        let address = parse(text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
        (address.config.get_ssl_mode(), address.verify, address.authorities)
    }

    #[test]
    fn part_of_a_password_is_not_shown_as_the_host() {
        for text in ["postgres://u:p@ss@h/d", "postgres://u:p@ss@h:5432/d?sslmode=require"] {
            let bad = parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(bad.contains("percent-encode @") && !bad.contains("ss@"), "{bad}");
        }
        assert!(parse("postgres://u:p%40ss@h/d").is_ok());
    }

    #[test]
    fn a_list_of_hosts_may_be_a_parameter() {
        let address = parse("postgres:///d?host=a,b&port=1,2&user=u").unwrap();
        assert_eq!(address.config.get_hosts(), [Host::Tcp("a".to_owned()), Host::Tcp("b".to_owned())]);
        assert_eq!(address.config.get_ports(), [1, 2]);
    }

    #[test]
    fn parameters_of_other_clients_are_named() {
        for (parameter, hint) in [("sslMode=require", "another client library"), ("passfile=/x", "instead of it")] {
            let bad = parse(&format!("postgres://u@h/d?{parameter}")).map(|_| ()).unwrap_err().to_string();
            let name = parameter.split('=').next().unwrap();
            assert!(bad.contains(name) && bad.contains(hint), "{bad}");
        }
    }

    #[test]
    fn the_password_is_kept_unless_an_sslmode_without_encryption_is_given() {
        let keeps = |parameters: &str| parse(&format!("postgres://u:p@h/d{parameters}")).unwrap().keeps_password;
        assert!(keeps("") && keeps("?sslmode=require"));
        assert!(!keeps("?sslmode=prefer") && !keeps("?sslmode=disable"));
    }

    #[test]
    fn sslmode_behaves_as_in_libpq() {
        use Authorities::{File, OfThisMachine};
        let file = || File("/ca.pem".to_owned());
        for (parameters, expected) in [
            ("", (SslMode::Prefer, Verify::Nothing, OfThisMachine)),
            ("sslmode=disable", (SslMode::Disable, Verify::Nothing, OfThisMachine)),
            ("sslmode=prefer", (SslMode::Prefer, Verify::Nothing, OfThisMachine)),
            ("sslmode=require", (SslMode::Require, Verify::Nothing, OfThisMachine)),
            ("sslmode=verify-ca", (SslMode::Require, Verify::Authority, OfThisMachine)),
            ("sslmode=verify-full", (SslMode::Require, Verify::AuthorityAndName, OfThisMachine)),
            ("sslmode=require&sslrootcert=/ca.pem", (SslMode::Require, Verify::Authority, file())),
            ("sslmode=verify-ca&sslrootcert=%2Fca.pem", (SslMode::Require, Verify::Authority, file())),
            ("sslrootcert=/ca.pem&sslmode=verify-full", (SslMode::Require, Verify::AuthorityAndName, file())),
            ("sslrootcert=/ca.pem", (SslMode::Require, Verify::AuthorityAndName, file())),
            ("sslrootcert=system", (SslMode::Require, Verify::AuthorityAndName, OfThisMachine)),
        ] {
            assert_eq!(read(&format!("postgres://u:p@h:1/d?{parameters}")), expected, "{parameters}");
            let pairs = percent_decoded(&parameters.replace('&', " ")).unwrap();
            assert_eq!(read(&format!("host=h user=u {pairs}")), expected, "{pairs}");
        }
    }

    #[test]
    fn parameters_are_passed_to_the_driver() {
        let address = parse(
            "postgresql://us%40er:p%3Fw@h1:1,h2:2/d%20b?target_session_attrs=primary&gssencmode=prefer\
             &keepalives_count=3&connect_timeout=7&application_name=x&options=-c%20a%3Db",
        );
        let config = address.unwrap().config;
        assert_eq!(config.get_user(), Some("us@er"));
        assert_eq!(config.get_password(), Some(&b"p?w"[..]));
        assert_eq!(config.get_dbname(), Some("d b"));
        assert_eq!((config.get_hosts().len(), config.get_ports()), (2, &[1, 2][..]));
        assert_eq!(config.get_target_session_attrs(), tokio_postgres::config::TargetSessionAttrs::ReadWrite);
        assert_eq!(config.get_keepalives_retries(), Some(3));
        assert_eq!(config.get_options(), Some("-c a=b"));
        let config = parse(r"host='h' password='it\'s \\ x' dbname = d port=1").unwrap().config;
        assert_eq!(config.get_password(), Some(&br"it's \ x"[..]));
        assert_eq!(config.get_dbname(), Some("d"));
    }

    #[test]
    fn unix_sockets_are_not_encrypted() {
        for text in ["postgres://u@%2Frun%2Fpg/d?sslmode=require", "host=/run/pg user=u sslmode=verify-full"] {
            let address = parse(text).unwrap();
            assert!(address.is_plain(), "{text}");
            assert_eq!(address.config.get_hosts(), [Host::Unix("/run/pg".into())]);
        }
    }

    #[test]
    fn unsupported_parameters_are_rejected_by_name_without_the_password() {
        for (text, named) in [
            ("postgres://u:secret@h/d?sslmode=allow", "sslmode to be disable, prefer"),
            ("postgres://u:secret@h/d?gssencmode=require", "gssencmode"),
            ("postgres://u:secret@h/d?target_session_attrs=standby", "target_session_attrs"),
            ("postgres://u:secret@h/d?sslcrl=/x", "sslcrl"),
            ("postgres://u:secret@h/d?sslnegotiation=direct", "sslnegotiation"),
            ("postgres://u:secret@h/d?load_balance_hosts=random", "load_balance_hosts"),
            ("postgres://u:secret@h/d?ssl=true", "sslmode=require"),
            ("postgres://u:secret@h/d?pgbouncer=true", "pgbouncer"),
            ("postgres://u:secret@h/d?sslcert=/c", "sslkey beside sslcert"),
            ("postgres://u:secret@h/d?sslcert=/c&sslkey=/k&sslmode=disable", "sslcert"),
            ("postgres://u:secret@h/d?sslrootcert=/c&sslmode=prefer", "sslrootcert"),
            ("postgres://u:secret@h/d?sslrootcert=system&sslmode=verify-ca", "verify-full"),
            ("postgres://u:secret@h/d?sslmode", "separated by &"),
            ("postgres://u:secret@h:x/d", "port"),
            ("postgres://u:secret@h1:1,h2:0/d", "1 to 65535"),
            ("postgres://u:secret@/d", "a host"),
            ("postgres://u:secret@h/d?host=/run/postgresql", "one host: the URL contains one"),
            ("postgres://u:secret@h:1/d?port=2", "one port"),
            ("postgres:///d", "a host"),
            ("postgres://u:secret@müller/d", "ASCII"),
            ("host=h1,h2 port=1,2,3 password=secret", "one for each host"),
            ("host=h password=my secret", "host=… user=…"),
            ("mysql://u:secret@h", "postgres://"),
            ("\"postgres://u:secret@h/d\"", "without quotes"),
            ("\u{feff}postgres://u:secret@h/d", "byte order mark"),
            ("postgresql+asyncpg://u:secret@h/d", "SQLAlchemy"),
            ("nonsense", "postgres://"),
            ("", "postgres://"),
        ] {
            let refused = parse(text).map(|a| format!("{:?}", a.config)).unwrap_err().to_string();
            assert!(refused.contains(named) && !refused.contains("secret"), "{text}: {refused}");
        }
    }

    #[test]
    fn errors_of_files_name_the_parameter() {
        for (parameters, named) in [
            ("sslrootcert=/no/such.pem", "sslrootcert (/no/such.pem)"),
            ("sslmode=require&sslcert=/no/such.crt&sslkey=/k", "sslcert (/no/such.crt)"),
        ] {
            let refused = parse(&format!("postgres://u@h/d?{parameters}")).unwrap().tls().unwrap_err().to_string();
            assert!(refused.contains(named) && refused.contains("No such file"), "{refused}");
        }
    }

    #[test]
    fn parameters_can_be_added_to_both_forms() {
        for text in
            ["postgres://u:p@h/d", "postgres://u:p?w@h/d", "postgres://u:p@h/d?connect_timeout=1", "host=h user=u"]
        {
            let whole = with_parameter(text, "sslrootcert", "/my ca's.pem");
            assert_eq!(read(&whole).2, Authorities::File("/my ca's.pem".to_owned()), "{whole}");
            assert_eq!(parameter(&whole, "sslrootcert").as_deref(), Some("/my ca's.pem"));
            assert_eq!(parameter(text, "sslrootcert"), None);
        }
        // Server options are combined.
        let whole = with_parameter("host=h options='-c a=b'", "options", "-c c=d");
        assert_eq!(parse(&whole).unwrap().config.get_options(), Some("-c a=b -c c=d"));
    }
}
