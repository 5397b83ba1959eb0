//! Certificates for TLS servers, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory with an authority (`ca.pem`) and what it signed; gone when dropped.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("shepherd-certificates-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let made = Self(folder);
        made.authority("ca");
        made
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// The path of a file here.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// An authority: `NAME.pem` with its key `NAME.key`. It is also a self-signed certificate as people make them.
    pub(crate) fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 2 \
             -subj /CN={name} -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        ));
    }

    /// A certificate `NAME.pem` with its key `NAME.key`, for the names (`DNS:localhost,IP:127.0.0.1`).
    pub(crate) fn issue(&self, name: &str, names: &str, days: i32) {
        let extensions = format!("basicConstraints=CA:FALSE\nsubjectAltName={names}\n");
        std::fs::write(self.0.join(format!("{name}.ext")), extensions).unwrap();
        self.sign(name, days, &format!("-extfile {name}.ext"));
    }

    /// A certificate of X.509 version 1, as `openssl x509 -req` makes it without extensions.
    pub(crate) fn issue_version_1(&self, name: &str) {
        self.sign(name, 2, "");
    }

    fn sign(&self, name: &str, days: i32, extensions: &str) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -out {name}.pem {extensions}"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
