//! Parses the Redis settings and URLs, for the monitor, workers and doctor.
//!
//! Every parameter of a URL is honoured or rejected by name. The TLS parameters are those of redis-py, because fleets share their
//! URLs with Python workers.

use std::fmt;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates,
};

use super::generation::Generation;
use crate::environment::{self, BadSetting, GivenPort, percent_encoded};
use crate::tcp;
use crate::tls::{self, BadIdentity};

/// Settings of the Redis connection: variable, default, description.
pub const SETTINGS: &[(&str, &str, &str)] = &[
    (
        "REDIS_URL",
        "",
        "Redis URL: redis://[user:password@]host:port/db, rediss:// for TLS. Overrides REDIS_HOST, REDIS_PORT, REDIS_USER and REDIS_PASSWORD",
    ),
    ("REDIS_URL_FILE", "", "File that holds REDIS_URL"),
    ("REDIS_HOST", "localhost", "Redis host, host:port, or path of a Unix socket"),
    ("REDIS_PORT", "6379", "Redis port"),
    ("REDIS_USER", "", "Redis user (ACL)"),
    ("REDIS_PASSWORD", "", "Redis password"),
    ("REDIS_PASSWORD_FILE", "", "File that holds REDIS_PASSWORD"),
    (
        "REDIS_TLS",
        "no",
        "yes: connect to REDIS_HOST with TLS; implied by REDIS_TLS_CA_FILE, REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE",
    ),
    ("REDIS_TLS_CA_FILE", "", "PEM file with the CA certificates for Redis; empty: the CA certificates of the system"),
    ("REDIS_TLS_CERT_FILE", "", "PEM file with the client certificate for Redis, if it requires one"),
    ("REDIS_TLS_KEY_FILE", "", "PEM file with the private key of REDIS_TLS_CERT_FILE"),
    (
        environment::CREDENTIALS_DIRECTORY,
        "",
        "Set by systemd: directory with secrets in files named like the variables (LoadCredential)",
    ),
];

const DEFAULT_PORT: u16 = 6379;
const CA: &str = "REDIS_TLS_CA_FILE";
const CERTIFICATE: &str = "REDIS_TLS_CERT_FILE";
const KEY: &str = "REDIS_TLS_KEY_FILE";
/// Settings that are passed on as URL parameters.
const AS_PARAMETERS: [(&str, &str); 3] = [(CA, "ssl_ca_certs"), (CERTIFICATE, "ssl_certfile"), (KEY, "ssl_keyfile")];
/// Parameters of redis-py that only concern the representation of values; ignored.
const OF_PYTHON: [&str; 3] = ["decode_responses", "encoding", "encoding_errors"];

/// Address of a Redis server with its credentials, which `Debug` and `Display` omit.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
    generation: Generation,
}

impl Address {
    /// Parses `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS. `setting` is the name of the setting, for errors.
    ///
    /// # Errors
    /// If the URL is invalid, has an unsupported parameter, or names an unusable file.
    pub fn from_url(setting: &'static str, url: &str) -> Result<Self, BadSetting> {
        Ok(Self::new(connection_info(setting, url)?))
    }

    /// Reads the [`SETTINGS`]; `lookup` returns the value of a variable. Empty values count as unset. Logs warnings.
    ///
    /// # Errors
    /// The variable, its value and the expected value.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, BadSetting> {
        let mut warnings = Vec::new();
        let url = url_from_env(&lookup, &mut warnings)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Self::from_url("REDIS_URL", &url)
    }

    fn new(info: ConnectionInfo) -> Self {
        // Always RESP2, so that all servers answer in the same form.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let generation = Generation::of_server(info.addr());
        Self { info: info.set_redis_settings(settings).set_tcp_settings(tcp::settings()), generation }
    }

    /// Returns the same server with database `number`.
    #[must_use]
    pub fn database(&self, number: i64) -> Self {
        let settings = self.info.redis_settings().clone().set_db(number);
        Self { info: self.info.clone().set_redis_settings(settings), generation: self.generation.clone() }
    }

    pub(super) fn generation(&self) -> &Generation {
        &self.generation
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    pub(super) fn client(&self) -> Result<Client, redis::RedisError> {
        Client::open(self.info.clone())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.addr().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// Returns the checked URL for the [`SETTINGS`]; appends warnings for users to `warnings`.
///
/// # Errors
/// The first invalid setting.
pub fn url_from_env(lookup: &dyn Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> Result<String, BadSetting> {
    let set = |name: &str| {
        lookup(name).map(|value| environment::trimmed(name, &value).to_owned()).filter(|value| !value.is_empty())
    };
    let url = environment::secret("REDIS_URL", "REDIS_URL_FILE", lookup)?;
    let wants_tls = match set("REDIS_TLS").map(|text| text.to_lowercase()).as_deref() {
        None => None,
        Some("yes" | "true" | "1" | "on") => Some(true),
        Some("no" | "false" | "0" | "off") => Some(false),
        Some(other) => return Err(BadSetting::new("REDIS_TLS", other, "yes or no")),
    };
    let files: Vec<(&'static str, &'static str, String)> =
        AS_PARAMETERS.iter().filter_map(|(name, parameter)| Some((*name, *parameter, set(name)?))).collect();
    check_files(&files)?;
    let has_url = url.is_some();
    let mut url = match url {
        Some(url) => {
            let ignored: Vec<&str> =
                ["REDIS_HOST", "REDIS_PORT", "REDIS_USER", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE"]
                    .into_iter()
                    .filter(|name| set(name).is_some_and(|value| environment::service_link(&value).is_none()))
                    .collect();
            if !ignored.is_empty() {
                warnings.push(format!("REDIS_URL overrides {}", ignored.join(", ")));
            }
            // Checked separately, so that errors name this setting.
            connection_info("REDIS_URL", &url)?;
            url
        }
        None => url_of_host(&set, lookup, wants_tls.unwrap_or(!files.is_empty()), warnings)?,
    };
    let is_tls = is_tls(&url);
    let not_tls = if has_url { "REDIS_URL to begin with rediss://" } else { "nothing while REDIS_TLS is no" };
    if wants_tls == Some(true) && !is_tls {
        return Err(BadSetting::new("REDIS_TLS", "yes", not_tls));
    }
    if has_url && wants_tls == Some(false) && is_tls {
        return Err(BadSetting::new("REDIS_TLS", "no", "yes or nothing, since REDIS_URL begins with rediss://"));
    }
    for (name, parameter, path) in files {
        if !is_tls {
            return Err(BadSetting::new(name, path, not_tls));
        }
        match parameter_in(&url, parameter) {
            Some(other) if other != path => {
                return Err(BadSetting::new(name, path, format!("the same as {parameter} in REDIS_URL, or nothing")));
            }
            Some(_) => {}
            None => {
                let (whole, fragment) = url.split_once('#').map_or((url.as_str(), None), |(a, b)| (a, Some(b)));
                let join = if whole.contains('?') { '&' } else { '?' };
                let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
                url = format!("{whole}{join}{parameter}={}{fragment}", percent_encoded(&path));
            }
        }
    }
    Ok(url)
}

/// Returns the host to which the password of `url` is sent unencrypted; `None` if there is no password, TLS is used, or the
/// connection is local.
#[must_use]
pub fn password_in_clear(url: &str) -> Option<String> {
    let info = connection_info("REDIS_URL", url).ok()?;
    info.redis_settings().password()?;
    match info.addr() {
        ConnectionAddr::Tcp(host, _) => (!tcp::is_loopback(host)).then(|| host.clone()),
        _ => None,
    }
}

/// Returns whether a URL uses TLS.
#[must_use]
pub fn is_tls(url: &str) -> bool {
    url.starts_with("rediss://") || url.starts_with("valkeys://")
}

/// Returns the URL for `REDIS_HOST` and the related settings.
fn url_of_host(
    set: &dyn Fn(&str) -> Option<String>,
    lookup: &dyn Fn(&str) -> Option<String>,
    tls: bool,
    warnings: &mut Vec<String>,
) -> Result<String, BadSetting> {
    let text = set("REDIS_HOST").unwrap_or_else(|| "localhost".to_owned());
    let user = set("REDIS_USER");
    let password = environment::secret("REDIS_PASSWORD", "REDIS_PASSWORD_FILE", lookup)?;
    if user.is_some() && password.is_none() {
        return Err(BadSetting::new("REDIS_USER", user.unwrap_or_default(), "REDIS_PASSWORD beside it"));
    }
    if text.starts_with('/') {
        let parameter =
            |name: &str, value: Option<String>| value.map(|value| format!("{name}={}", percent_encoded(&value)));
        let parameters: Vec<String> =
            [parameter("user", user), parameter("pass", password)].into_iter().flatten().collect();
        let path: Vec<String> = text.split('/').map(percent_encoded).collect();
        let query = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
        return Ok(format!("redis+unix://{}{query}", path.join("/")));
    }
    if text.contains(',') {
        return Err(BadSetting::new("REDIS_HOST", text, "one host: that of the primary, or a name that follows it"));
    }
    let at = environment::host_and_port("REDIS_HOST", &text, "REDIS_URL")?;
    let given: Option<GivenPort> = set("REDIS_PORT").map(|port| environment::port("REDIS_PORT", &port)).transpose()?;
    let port = environment::chosen_port(("REDIS_HOST", &text), at.port, "REDIS_PORT", given, DEFAULT_PORT, warnings)?;
    let login = password.map(|password| {
        format!("{}:{}@", user.as_deref().map(percent_encoded).unwrap_or_default(), percent_encoded(&password))
    });
    let host = if at.host.contains(':') { format!("[{}]", at.host) } else { at.host };
    let scheme = if tls { "rediss" } else { "redis" };
    Ok(format!("{scheme}://{}{host}:{port}/0", login.unwrap_or_default()))
}

/// Checks that the files of the settings are usable.
fn check_files(files: &[(&'static str, &'static str, String)]) -> Result<(), BadSetting> {
    let path = |name: &str| files.iter().find(|(known, ..)| *known == name).map(|(_, _, path)| path.as_str());
    if let Some(ca) = path(CA) {
        tls::authorities(ca).map_err(|expected| BadSetting::new(CA, ca, expected))?;
    }
    match (path(CERTIFICATE), path(KEY)) {
        (Some(certificate), Some(key)) => tls::identity(certificate, key).map(drop).map_err(|bad| match bad {
            BadIdentity::Certificate(expected) => BadSetting::new(CERTIFICATE, certificate, expected),
            BadIdentity::Key(expected) => BadSetting::new(KEY, key, expected),
        }),
        (Some(certificate), None) => Err(BadSetting::new(CERTIFICATE, certificate, format!("{KEY} beside it"))),
        (None, Some(key)) => Err(BadSetting::new(KEY, key, format!("{CERTIFICATE} beside it"))),
        (None, None) => Ok(()),
    }
}

/// Returns the connection parameters of `url`, the value of the setting `setting`. Errors never contain the URL, since it may hold
/// a password.
///
/// # Errors
/// If the URL is invalid, has an unsupported parameter, or names an unusable file.
pub fn connection_info(setting: &'static str, url: &str) -> Result<ConnectionInfo, BadSetting> {
    const EXAMPLE: &str = "a URL such as redis://user:password@localhost:6379/0 or rediss://…";
    let bad = |expected: String| BadSetting::secret(setting, expected);
    if let Some(expected) = environment::enclosed(url) {
        return Err(bad(expected.to_owned()));
    }
    let Some(mut parsed) = redis::parse_redis_url(url) else {
        let scheme = url.split("://").next().unwrap_or_default();
        let hint = match scheme {
            "redis" | "rediss" | "valkey" | "valkeys" => {
                " (one host and port; @ : / ? # in a password are percent-encoded)"
            }
            "redis+sentinel" | "redis-sentinel" | "sentinel" => " (Sentinel is not supported: name the primary)",
            "redis+cluster" | "redis-cluster" => " (Redis Cluster is not supported)",
            _ => "",
        };
        return Err(bad(format!("{EXAMPLE}{hint}")));
    };
    let is_tls = matches!(parsed.scheme(), "rediss" | "valkeys");
    let is_socket = matches!(parsed.scheme(), "unix" | "redis+unix" | "valkey+unix");
    match parsed.fragment() {
        None => {}
        Some("insecure") if is_tls => {}
        Some(_) => return Err(bad(format!("{EXAMPLE}; nothing after # (percent-encode # in a password)"))),
    }
    if !is_socket {
        let host = parsed.host_str().unwrap_or_default();
        if host.is_empty() {
            return Err(bad(format!("{EXAMPLE}, with a host")));
        }
        if host.contains('%') || !host.is_ascii() {
            return Err(bad("an ASCII host name (the xn-- form of a name with other letters)".to_owned()));
        }
        // It would not be sent: Redis logs in by a password, with or without a name.
        if !parsed.username().is_empty() && parsed.password().is_none_or(str::is_empty) {
            return Err(bad(
                "a password after the user (redis://user:password@host); without a user: redis://:password@host"
                    .to_owned(),
            ));
        }
        let path = parsed.path().trim_matches('/');
        if !path.is_empty() && path.parse::<u32>().is_err() {
            let shown = if path.contains('@') || path.len() > 20 { String::new() } else { format!(", not {path:?}") };
            return Err(bad(format!("a database number after the host's slash{shown}")));
        }
    }
    let pairs: Vec<(String, String)> =
        parsed.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let tls = Parameters::read(setting, &pairs, is_tls, is_socket)?;
    if tls.any_certificate {
        parsed.set_fragment(Some("insecure"));
    }
    if let (Some(number), false) = (tls.database, is_socket) {
        let path = parsed.path().trim_matches('/').to_owned();
        if path.parse::<u32>().is_ok_and(|in_path| in_path != number) {
            return Err(bad(format!("one database: /{path} or db={number}")));
        }
        parsed.set_path(&format!("/{number}"));
    }
    let info = parsed.into_connection_info().map_err(|e| bad(format!("{EXAMPLE} ({})", e.category())))?;
    if !is_tls {
        return Ok(info);
    }
    // An error means that the process already has a provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tls.apply(setting, info)
}

/// URL parameters for TLS and the database.
#[derive(Default)]
struct Parameters {
    authorities: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    any_certificate: bool,
    any_name: bool,
    database: Option<u32>,
}

impl Parameters {
    fn read(
        setting: &'static str,
        pairs: &[(String, String)],
        is_tls: bool,
        is_socket: bool,
    ) -> Result<Self, BadSetting> {
        let bad = |expected: String| Err(BadSetting::secret(setting, expected));
        let mut read = Self::default();
        for (name, value) in pairs {
            let value_of = |expected: &str| format!("{name} to be {expected}");
            let path = || (!value.is_empty()).then(|| value.clone());
            match name.as_str() {
                "db" => match value.parse() {
                    Ok(number) => read.database = Some(number),
                    Err(_) => return bad(value_of("a database number")),
                },
                // redis-rs parses these.
                "user" | "pass" if is_socket => {}
                "protocol" => {}
                name if OF_PYTHON.contains(&name) => {}
                "ssl_cert_reqs" | "ssl_check_hostname" | "ssl_ca_certs" | "ssl_certfile" | "ssl_keyfile" if !is_tls => {
                    return bad(format!("a URL that begins with rediss://, since it has {name}"));
                }
                "ssl_cert_reqs" => match value.to_lowercase().trim_start_matches("cert_") {
                    "none" => read.any_certificate = true,
                    "optional" | "required" => {}
                    _ => return bad(value_of("none, optional or required")),
                },
                "ssl_check_hostname" => match value.to_lowercase().as_str() {
                    "true" | "1" | "yes" => {}
                    "false" | "0" | "no" => read.any_name = true,
                    _ => return bad(value_of("true or false")),
                },
                "ssl_ca_certs" => read.authorities = path(),
                "ssl_certfile" => read.certificate = path(),
                "ssl_keyfile" => read.key = path(),
                name => {
                    // Text that is not a parameter name may be part of a password.
                    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                    let shown = if is_name { name } else { "of that name" };
                    return bad(format!("no parameter {shown}, which is not supported; leave it out"));
                }
            }
        }
        if read.any_certificate && read.authorities.is_some() {
            return bad("either ssl_cert_reqs=none, which accepts any certificate, or CA certificates (ssl_ca_certs, \
                 REDIS_TLS_CA_FILE), not both"
                .to_owned());
        }
        match (&read.certificate, &read.key) {
            (Some(_), None) => bad("ssl_keyfile beside ssl_certfile".to_owned()),
            (None, Some(_)) => bad("ssl_certfile beside ssl_keyfile".to_owned()),
            _ => Ok(read),
        }
    }

    /// Adds the certificates, which are read now.
    fn apply(&self, setting: &'static str, info: ConnectionInfo) -> Result<ConnectionInfo, BadSetting> {
        let bad = |parameter: &str, path: &str, expected: String| {
            BadSetting::secret(setting, format!("{parameter} ({path}) to be {expected}"))
        };
        let mut certificates = TlsCertificates { client_tls: None, root_cert: None };
        if let Some(path) = &self.authorities {
            tls::authorities(path).map_err(|expected| bad("ssl_ca_certs", path, expected))?;
            let pem = tls::read(path).map_err(|expected| bad("ssl_ca_certs", path, expected))?;
            certificates.root_cert = Some(pem);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            tls::identity(certificate, key).map_err(|fault| match fault {
                BadIdentity::Certificate(expected) => bad("ssl_certfile", certificate, expected),
                BadIdentity::Key(expected) => bad("ssl_keyfile", key, expected),
            })?;
            let client_cert = tls::read(certificate).map_err(|expected| bad("ssl_certfile", certificate, expected))?;
            let client_key = tls::read(key).map_err(|expected| bad("ssl_keyfile", key, expected))?;
            certificates.client_tls = Some(ClientTlsConfig { client_cert, client_key });
        }
        let (ConnectionAddr::TcpTls { insecure, .. }, redis_settings) = (info.addr(), info.redis_settings().clone())
        else {
            return Ok(info);
        };
        let insecure = *insecure;
        let client = Client::build_with_tls(info, certificates)
            .map_err(|error| BadSetting::secret(setting, format!("certificates that can be used ({error})")))?;
        let mut address = client.get_connection_info().addr().clone();
        if self.any_name && !insecure {
            address.set_danger_accept_invalid_hostnames(true);
        }
        let info = client.get_connection_info().clone();
        Ok(info.set_addr(address).set_redis_settings(redis_settings))
    }
}

/// Returns the URL parameter `wanted`.
fn parameter_in(url: &str, wanted: &str) -> Option<String> {
    let parsed = redis::parse_redis_url(url)?;
    parsed.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(pairs: &[(&str, &str)]) -> Result<String, String> {
        let lookup = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        url_from_env(&lookup, &mut Vec::new()).map_err(|bad| bad.to_string())
    }

    fn from(pairs: &[(&str, &str)]) -> Result<Address, BadSetting> {
        Address::from_env(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    fn refused(url: &str) -> String {
        connection_info("REDIS_URL", url).map(|info| format!("{:?}", info.addr())).unwrap_err().to_string()
    }

    #[test]
    fn a_password_goes_in_clear_to_another_machine_without_tls() {
        for (url, expected) in [
            ("redis://:pw@db:6379", Some("db")),
            ("redis://u:pw@10.0.0.1/0", Some("10.0.0.1")),
            ("redis://db:6379", None),
            ("rediss://:pw@db:6379", None),
            ("redis://:pw@localhost", None),
            ("redis://:pw@[::1]:6379", None),
        ] {
            assert_eq!(password_in_clear(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn variables_define_the_address_and_a_url_overrides_them() {
        assert_eq!(from(&[]).unwrap().to_string(), "localhost:6379");
        assert_eq!(from(&[("REDIS_HOST", "r"), ("REDIS_PORT", "7")]).unwrap().to_string(), "r:7");
        assert_eq!(from(&[("REDIS_URL", "redis://x:9/2"), ("REDIS_HOST", "y")]).unwrap().to_string(), "x:9");
        assert_eq!(from(&[("REDIS_HOST", "::1")]).unwrap().to_string(), "::1:6379");
        assert_eq!(from(&[("REDIS_HOST", "/run/redis.sock")]).unwrap().to_string(), "/run/redis.sock");
    }

    #[test]
    fn host_may_have_a_port_and_service_links_define_one() {
        assert_eq!(url(&[("REDIS_HOST", "redis:6380")]).unwrap(), "redis://redis:6380/0");
        let differ = url(&[("REDIS_HOST", "redis:6380"), ("REDIS_PORT", "6379")]).unwrap_err();
        assert!(differ.contains("REDIS_HOST") && differ.contains("REDIS_PORT"), "{differ}");
        let lookup = |name: &str| (name == "REDIS_PORT").then(|| "tcp://10.0.0.1:6380".to_owned());
        let mut warnings = Vec::new();
        assert_eq!(url_from_env(&lookup, &mut warnings).unwrap(), "redis://localhost:6380/0");
        assert!(warnings[0].contains("Kubernetes"), "{warnings:?}");
    }

    #[test]
    fn passwords_are_trimmed_and_never_shown() {
        let address = from(&[("REDIS_PASSWORD", "p@ss/w:rd#\n")]).unwrap();
        assert_eq!(address.info.redis_settings().password(), Some("p@ss/w:rd#"));
        assert!(!format!("{address:?}{address}").contains("p@ss"));
        let address = from(&[("REDIS_USER", "me"), ("REDIS_PASSWORD", "x")]).unwrap();
        assert_eq!(address.info.redis_settings().username(), Some("me"));
        let socket = from(&[("REDIS_HOST", "/r.sock"), ("REDIS_PASSWORD", "a&b")]).unwrap();
        assert_eq!(socket.info.redis_settings().password(), Some("a&b"));
        for url in ["http://:secret@x", "redis://:sec#ret@x", "redis://u:1/secret@x/0", "redis://:secret@x/db?a=b"] {
            let refused = refused(url);
            assert!(refused.contains("REDIS_URL") && !refused.replace("(secret)", "").contains("sec"), "{refused}");
        }
    }

    #[test]
    fn url_parameters_are_honoured_or_rejected_by_name() {
        let db = |url: &str| connection_info("REDIS_URL", url).unwrap().redis_settings().db();
        assert_eq!((db("redis://h/3"), db("redis://h?db=4"), db("redis://h/4?db=4"), db("redis://h/")), (3, 4, 4, 0));
        assert_eq!(db("redis://h/0?decode_responses=True&protocol=resp3"), 0);
        for (url, named) in [
            ("redis://h/abc", "database number after the host's slash, not \"abc\""),
            ("redis://h/-1", "database number"),
            ("redis://h/1?db=2", "db=2"),
            ("redis://h?db=x", "db to be a database number"),
            ("redis://h?socket_timeout=5", "socket_timeout"),
            ("redis://h?ssl_cert_reqs=none", "rediss://, since it has ssl_cert_reqs"),
            ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs to be none, optional or required"),
            ("rediss://h?ssl_check_hostname=maybe", "ssl_check_hostname to be true or false"),
            ("rediss://h?ssl_ca_certs=/no/such.pem", "ssl_ca_certs (/no/such.pem) to be a PEM file"),
            ("rediss://h?ssl_certfile=/c", "ssl_keyfile beside ssl_certfile"),
            ("rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/c", "not both"),
            ("rediss://h?ssl_ca_data=x", "ssl_ca_data"),
            ("rediss://h#other", "nothing after #"),
            ("redis://fleet@h", "a password after the user"),
            ("redis://h#insecure", "nothing after #"),
            ("redis://a:1,b:2/0", "one host"),
            ("redis:6379", "redis://user:password@localhost"),
            ("redis+sentinel://h", "Sentinel is not supported"),
            ("redis://müller.example", "ASCII host name"),
            ("", "redis://user:password@localhost"),
        ] {
            let refused = refused(url);
            assert!(refused.contains(named), "{url}: {refused}");
        }
    }

    #[test]
    fn certificate_checks_can_be_disabled_as_in_redis_py() {
        let insecure = |url: &str| match connection_info("REDIS_URL", url).unwrap().addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => (*insecure, tls_params.is_some()),
            _ => panic!("no TLS"),
        };
        assert!(insecure("rediss://h?ssl_cert_reqs=none").0);
        assert!(insecure("rediss://h?ssl_cert_reqs=CERT_NONE").0);
        assert!(insecure("rediss://h#insecure").0);
        assert!(!insecure("rediss://h?ssl_cert_reqs=required").0);
        assert_eq!(insecure("rediss://h?ssl_check_hostname=false"), (false, true));
    }

    #[test]
    fn invalid_tls_settings_are_rejected_by_name() {
        assert_eq!(url(&[("REDIS_TLS", "yes")]).unwrap(), "rediss://localhost:6379/0");
        for (pairs, named) in [
            (&[("REDIS_TLS", "perhaps")][..], "REDIS_TLS is \"perhaps\""),
            (&[("REDIS_TLS", "yes"), ("REDIS_URL", "redis://h")], "REDIS_URL to begin with rediss://"),
            (&[("REDIS_TLS", "no"), ("REDIS_URL", "rediss://h")], "REDIS_TLS is \"no\""),
            (&[("REDIS_TLS_CA_FILE", "/no/such.pem")], "REDIS_TLS_CA_FILE is \"/no/such.pem\""),
            (&[("REDIS_TLS_CERT_FILE", "/c")], "REDIS_TLS_KEY_FILE beside it"),
            (&[("REDIS_USER", "me")], "REDIS_PASSWORD beside it"),
            (&[("REDIS_HOST", "redis://h")], "REDIS_URL"),
            (&[("REDIS_HOST", "a,b")], "one host"),
        ] {
            let refused = url(pairs).unwrap_err();
            assert!(refused.contains(named), "{pairs:?}: {refused}");
        }
    }
}
