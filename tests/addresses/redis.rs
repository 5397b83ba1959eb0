//! A Redis with TLS, and users of Redis with few rights.

use shepherd_monitor::demo::servers::RedisOptions;
use shepherd_monitor::redis_streams::address::Address;
use shepherd_monitor::redis_streams::connection::{self, PersistentConnection};
use shepherd_monitor::redis_streams::tasks::SharedLink;

use super::*;
use crate::support::certificates::Certificates;
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::{TestRedis, run as command};
use crate::support::wait::eventually;

const BOTH: &str = "DNS:localhost,IP:127.0.0.1";

/// One whose port speaks TLS with the certificate `NAME.pem`.
fn with_tls(certificates: &Certificates, name: &str, clients: &str) -> TestRedis {
    let args = [
        "--tls-cert-file",
        &certificates.path(&format!("{name}.pem")),
        "--tls-key-file",
        &certificates.path(&format!("{name}.key")),
        "--tls-ca-cert-file",
        &certificates.path("ca.pem"),
        "--tls-auth-clients",
        clients,
    ]
    .map(str::to_owned);
    TestRedis::start_with(RedisOptions { args: args.into(), tls: true, ..RedisOptions::default() })
}

/// A connection as a worker makes it: the error in words.
async fn worker(settings: &[(&str, &str)]) -> Result<(), String> {
    let address = Address::from_env(|name| {
        settings.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    });
    let link = SharedLink::new(address.map_err(|bad| bad.to_string())?, SOON);
    link.ping().await.map_err(|failure| failure.to_string())
}

/// What doctor and a worker say, which must both be this.
async fn both_say(settings: &[(&str, &str)], what: &str, remedy: &str) {
    let of_doctor = finding(&[settings, &[NO_POSTGRES]].concat(), "redis.reached");
    assert!(of_doctor.contains(what) && of_doctor.contains(remedy), "doctor of {settings:?}: {of_doctor}");
    assert!(!of_doctor.contains("start the server"), "{of_doctor}");
    let of_worker = worker(settings).await.unwrap_err();
    assert!(of_worker.contains(what) && of_worker.contains(remedy), "worker of {settings:?}: {of_worker}");
}

#[tokio::test]
async fn monitor_doctor_and_worker_reach_a_redis_whose_authority_is_set() {
    let certificates = Certificates::new();
    certificates.issue("server", BOTH, 2);
    certificates.issue("client", "DNS:client", 2);
    let redis = with_tls(&certificates, "server", "yes");
    let (ca, port) = (certificates.path("ca.pem"), redis.port().to_string());
    let (certificate, key) = (certificates.path("client.pem"), certificates.path("client.key"));
    let by_settings = [
        ("REDIS_HOST", "localhost"),
        ("REDIS_PORT", &port),
        ("REDIS_TLS_CA_FILE", &ca),
        ("REDIS_TLS_CERT_FILE", &certificate),
        ("REDIS_TLS_KEY_FILE", &key),
    ];
    let url = format!("rediss://localhost:{port}/0?ssl_ca_certs={ca}&ssl_certfile={certificate}&ssl_keyfile={key}");
    let unchecked =
        format!("rediss://localhost:{port}?ssl_cert_reqs=none&ssl_certfile={certificate}&ssl_keyfile={key}");
    for settings in [&by_settings[..], &[("REDIS_URL", &url)], &[("REDIS_URL", &unchecked)]] {
        worker(settings).await.unwrap();
        let role = finding(&[settings, &[NO_POSTGRES]].concat(), "redis.role");
        assert!(role.contains("a primary"), "{role}");
    }
    let pool = connection::pool(&url, SOON).unwrap();
    connection::checkout(&pool).await.unwrap();
    PersistentConnection::to(&url, SOON).unwrap().take().await.unwrap();
}

#[tokio::test]
async fn each_certificate_that_cannot_be_used_is_named_with_the_remedy() {
    let certificates = Certificates::new();
    certificates.issue("server", BOTH, 2);
    certificates.issue("expired", BOTH, -1);
    certificates.issue("elsewhere", "DNS:redis.example", 2);
    certificates.issue_version_1("old");
    certificates.authority("other");
    let redis = with_tls(&certificates, "server", "no");
    let (ca, other, port) = (certificates.path("ca.pem"), certificates.path("other.pem"), redis.port().to_string());
    let base = [("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &*port)];
    let trusting = |file| [&base[..], &[("REDIS_TLS_CA_FILE", file)]].concat();
    worker(&trusting(&ca)).await.unwrap();
    both_say(&trusting(&other), "signed by an untrusted CA", "Set REDIS_TLS_CA_FILE").await;

    // The server takes another certificate while it runs.
    let admin = format!("rediss://127.0.0.1:{port}/?ssl_cert_reqs=none");
    let mut admin = PersistentConnection::to(&admin, SOON).unwrap().take().await.unwrap();
    for (name, what, remedy) in [
        ("expired", "has expired", "Renew it"),
        ("elsewhere", "for another name", "ssl_check_hostname=false"),
        ("old", "version 1", "as version 3"),
        ("other", "CA certificate as its own", "CA:FALSE"),
    ] {
        let (file, key) = (certificates.path(&format!("{name}.pem")), certificates.path(&format!("{name}.key")));
        command(&mut admin, &format!("CONFIG SET tls-cert-file {file} tls-key-file {key}")).await;
        let trusted = if name == "other" { &other } else { &ca };
        both_say(&trusting(trusted), what, remedy).await;
    }
    // With the authority's name unchecked.
    let (file, key) = (certificates.path("elsewhere.pem"), certificates.path("elsewhere.key"));
    command(&mut admin, &format!("CONFIG SET tls-cert-file {file} tls-key-file {key}")).await;
    let any_name = format!("rediss://127.0.0.1:{port}/?ssl_ca_certs={ca}&ssl_check_hostname=false");
    worker(&[("REDIS_URL", &any_name)]).await.unwrap();
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_and_one_without_tls_say_so() {
    let certificates = Certificates::new();
    certificates.issue("server", BOTH, 2);
    let redis = with_tls(&certificates, "server", "yes");
    let (ca, port) = (certificates.path("ca.pem"), redis.port().to_string());
    let settings = [("REDIS_HOST", "localhost"), ("REDIS_PORT", &*port), ("REDIS_TLS_CA_FILE", &*ca)];
    both_say(&settings, "requires a client certificate", "REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE").await;

    let plain = TestRedis::start();
    let url = format!("rediss://127.0.0.1:{}/", plain.port());
    both_say(&[("REDIS_URL", &url)], "redis://", "redis:// instead of rediss://").await;

    // The other way round.
    let url = format!("redis://localhost:{port}/");
    let said = finding(&[("REDIS_URL", &url), NO_POSTGRES], "redis.reached");
    assert!(said.contains("rediss://") && !said.contains("start the server"), "{said}");
}

#[tokio::test]
async fn a_key_of_another_certificate_stops_the_start_with_the_settings_name() {
    let certificates = Certificates::new();
    certificates.issue("a", BOTH, 2);
    certificates.issue("b", BOTH, 2);
    let (a, b) = (certificates.path("a.pem"), certificates.path("b.key"));
    let output = run(&["doctor"], &[("REDIS_TLS_CERT_FILE", &a), ("REDIS_TLS_KEY_FILE", &b), NO_POSTGRES]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("REDIS_TLS_KEY_FILE is ") && said.contains("the private key of"), "{said}");
}

#[tokio::test]
async fn a_user_with_what_doctor_asks_for_is_refused_nothing() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let mut admin = redis.connection().await;
    command(&mut admin, "XADD s * f v").await;
    command(&mut admin, "XGROUP CREATE s consumer 0").await;
    command(&mut admin, "ACL SETUSER m on >pass -@all").await;
    let url = format!("redis://m:pass@127.0.0.1:{}/", redis.port());
    let settings = [("REDIS_URL", &*url), NO_POSTGRES];
    // Each round asks for what it could find out; a user who may not begin a transaction is asked for that first.
    for _ in 0..8 {
        let rules: Vec<String> = findings(&settings)
            .iter()
            .filter_map(|finding| Some(finding["do"].as_str()?.strip_prefix("run ACL SETUSER m ")?.to_owned()))
            .collect();
        if rules.is_empty() {
            break;
        }
        for rule in rules {
            command(&mut admin, &format!("ACL SETUSER m {rule}")).await;
        }
    }
    let may = finding(&settings, "redis.may");
    assert!(may.contains("all required commands"), "{may}: {:#?}", findings(&settings));
    command(&mut admin, "ACL LOG RESET").await;
    let monitor = Monitor::start(&[("REDIS_URL", &url), ("DATABASE_URL", &database.url())]).await;
    eventually("the stream is read", Duration::from_secs(10), || async {
        let snapshot = monitor.snapshot().await;
        snapshot["streams"].to_string().contains("\"s\"").then_some(()).ok_or_else(|| snapshot.to_string())
    })
    .await;
    // Long enough for connections to be used again and for what is kept to be written.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = command(&mut admin, "ACL LOG").await;
    assert_eq!(refused, ::redis::Value::Array(Vec::new()), "{}", monitor.log());
}

#[tokio::test]
async fn a_cluster_and_a_renamed_command_are_not_told_to_upgrade() {
    let cluster = TestRedis::start_with(RedisOptions::with_args(["--cluster-enabled", "yes"]));
    let settings = [("REDIS_URL", &*cluster.url()), NO_POSTGRES];
    assert!(finding(&settings, "redis.cluster").contains("cluster mode disabled"), "{:#?}", findings(&settings));
    assert!(!findings(&settings).iter().any(|finding| finding["do"].to_string().contains("upgrade it")));
    for renamed in ["XTRIM", "MULTI"] {
        let redis = TestRedis::start_with(RedisOptions::with_args(["--rename-command", renamed, ""]));
        let said = finding(&[("REDIS_URL", &redis.url()), NO_POSTGRES], "redis.refuses");
        assert!(said.contains(renamed) && said.contains("rename-command") && !said.contains("upgrade"), "{said}");
    }
}
