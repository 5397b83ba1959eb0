//! A Postgres with TLS.

use std::os::unix::fs::{MetadataExt, chown};

use diesel::sql_types::{Bool, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;
use shepherd_monitor::demo::servers::PrivatePostgres;
use shepherd_monitor::postgres::connection::connect;

use super::*;
use crate::support::certificates::Certificates;
use crate::support::postgres::connect as plain_client;

const BOTH: &str = "DNS:localhost,IP:127.0.0.1";

#[derive(QueryableByName, Debug)]
struct Session {
    #[diesel(sql_type = Bool)]
    encrypted: bool,
    #[diesel(sql_type = Text)]
    database: String,
}

/// A server, its certificates, and rules about who may log in how: `bycert` only with a client certificate of that name,
/// `encrypted` only with TLS.
struct Ground {
    server: PrivatePostgres,
    certificates: Certificates,
}

impl Ground {
    async fn new() -> Self {
        let ground = Self { server: PrivatePostgres::start().unwrap(), certificates: Certificates::new() };
        let rules = "local all all trust\n\
                     hostssl all bycert all trust clientcert=verify-full\n\
                     hostssl all encrypted all trust\n\
                     host all postgres all trust\n";
        std::fs::write(ground.server.folder().join("data/pg_hba.conf"), rules).unwrap();
        ground.sql("CREATE USER bycert; CREATE USER encrypted").await;
        ground
    }

    async fn sql(&self, statements: &str) {
        let client = plain_client(&self.server.url()).await.unwrap();
        for statement in statements.split(';') {
            client.batch_execute(statement).await.unwrap();
        }
    }

    /// Lets the server present the certificate `NAME.pem`.
    async fn present(&self, name: &str) {
        let data = self.server.folder().join("data");
        let owner = std::fs::metadata(&data).unwrap();
        for kind in ["pem", "key"] {
            let to = data.join(format!("server.{kind}"));
            std::fs::copy(self.certificates.folder().join(format!("{name}.{kind}")), &to).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let ca = data.join("ca.pem");
        std::fs::copy(self.certificates.folder().join("ca.pem"), &ca).unwrap();
        chown(&ca, Some(owner.uid()), Some(owner.gid())).unwrap();
        self.sql(
            "ALTER SYSTEM SET ssl_cert_file = 'server.pem'; ALTER SYSTEM SET ssl_key_file = 'server.key'; \
             ALTER SYSTEM SET ssl_ca_file = 'ca.pem'; ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf()",
        )
        .await;
        // The server reloads after it answered.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    /// An address of the server, by this user, host and parameters.
    fn url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}@{host}:{}/postgres?{parameters}", self.server.port())
    }

    async fn session(&self, url: &str) -> Session {
        let mut connection = connect(url.to_owned(), SOON).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        sql_query(
            "SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS encrypted, \
             current_database()::text AS database",
        )
        .get_result(&mut connection)
        .await
        .unwrap()
    }

    /// What the monitor's connections and doctor say, which must both be this.
    async fn says(&self, url: &str, what: &str, remedy: &str) {
        let error = connect(url.to_owned(), SOON).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(what) && error.contains(remedy), "{url}: {error}");
        let settings = [("DATABASE_URL", url), NO_REDIS];
        let said = format!("{}{}", finding(&settings, "postgres.reached"), finding(&settings, "postgres.login"));
        assert!(said.contains(what) && said.contains(remedy) && !said.contains("start the server"), "{url}: {said}");
    }
}

#[tokio::test]
async fn each_sslmode_connects_or_says_why_not() {
    let ground = Ground::new().await;
    let certificates = &ground.certificates;
    certificates.issue("server", BOTH, 2);
    certificates.issue("expired", BOTH, -1);
    certificates.issue("elsewhere", "DNS:db.example", 2);
    certificates.issue("bycert", "DNS:client", 2);
    certificates.issue_version_1("old");
    certificates.authority("own");
    let ca = certificates.path("ca.pem");
    let url = |parameters: &str| ground.url("postgres", "localhost", parameters);

    // A server without TLS.
    assert!(!ground.session(&url("sslmode=prefer")).await.encrypted);
    ground.says(&url("sslmode=require"), "does not speak TLS", "POSTGRES_SSLMODE").await;

    ground.present("server").await;
    for (parameters, encrypted) in [
        ("", true),
        ("sslmode=disable", false),
        ("sslmode=prefer", true),
        ("sslmode=require", true),
        (&*format!("sslmode=require&sslrootcert={ca}"), true),
        (&*format!("sslmode=verify-ca&sslrootcert={ca}"), true),
        (&*format!("sslmode=verify-full&sslrootcert={ca}&target_session_attrs=primary&gssencmode=disable"), true),
        (&*format!("sslrootcert={ca}&ssl_min_protocol_version=TLSv1.3"), true),
    ] {
        assert_eq!(ground.session(&url(parameters)).await.encrypted, encrypted, "{parameters}");
    }
    ground.says(&url("sslmode=verify-full"), "signed by an untrusted CA", "POSTGRES_SSLROOTCERT").await;

    // By settings, and of a user with a certificate.
    let port = ground.server.port().to_string();
    let base = [("POSTGRES_HOST", "localhost"), ("POSTGRES_PORT", &*port), NO_REDIS];
    let settings = [&base[..], &[("POSTGRES_SSLMODE", "verify-full"), ("POSTGRES_SSLROOTCERT", &ca)]].concat();
    assert!(finding(&settings, "postgres.version").contains("connected to Postgres"), "{:#?}", findings(&settings));
    let (certificate, key) = (certificates.path("bycert.pem"), certificates.path("bycert.key"));
    let with_certificate = format!("sslmode=require&sslcert={certificate}&sslkey={key}");
    assert!(ground.session(&ground.url("bycert", "localhost", &with_certificate)).await.encrypted);
    ground
        .says(
            &ground.url("bycert", "localhost", "sslmode=require"),
            "requires a client certificate",
            "POSTGRES_SSLCERT",
        )
        .await;
    ground.says(&ground.url("encrypted", "localhost", "sslmode=disable"), "with TLS only", "sslmode").await;

    // Certificates that cannot be verified are good enough where nothing is verified.
    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    for (name, what, remedy) in [
        ("expired", "has expired", "Renew it"),
        ("elsewhere", "for another name", "verify-ca"),
        ("old", "version 1", "as version 3"),
    ] {
        ground.present(name).await;
        ground.says(&url(&full), what, remedy).await;
        assert!(ground.session(&url("sslmode=require")).await.encrypted, "{name}");
    }
    ground.present("elsewhere").await;
    assert!(ground.session(&url(&format!("sslmode=verify-ca&sslrootcert={ca}"))).await.encrypted);
    // Self-signed as `openssl req -x509` makes it, trusted as it is.
    ground.present("own").await;
    let own = format!("sslmode=verify-full&sslrootcert={}", certificates.path("own.pem"));
    assert!(ground.session(&url(&own)).await.encrypted);
}

#[tokio::test]
async fn several_hosts_a_socket_and_a_database_of_ones_own_are_reached() {
    let ground = Ground::new().await;
    let port = ground.server.port().to_string();
    ground.sql("CREATE DATABASE other").await;
    // The first host refuses; the standby that may not be written to is passed over.
    let several = format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{port}/other?target_session_attrs=read-write");
    assert_eq!(ground.session(&several).await.database, "other");
    let data = ground.server.folder().join("data").display().to_string();
    let mut settings = vec![("POSTGRES_PORT", &*port), NO_REDIS];
    settings.extend([("POSTGRES_HOST", &*data), ("POSTGRES_DB", "other"), ("POSTGRES_SSLMODE", "require")]);
    assert!(finding(&settings, "postgres.version").contains("connected to Postgres"), "{:#?}", findings(&settings));
    ground.sql("ALTER DATABASE other SET default_transaction_read_only = on").await;
    let refused = connect(several, SOON).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("does not allow writes"), "{refused}");
    let no_such_host = format!("postgres://postgres@no-such-host.invalid:{port}/postgres");
    let said = finding(&[("DATABASE_URL", &no_such_host), NO_REDIS], "postgres.reached");
    assert!(said.contains("DNS") && !said.contains("start the server"), "{said}");
}
