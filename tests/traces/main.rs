//! Spans as a collector sees them. A binary of its own, since it needs the feature `otlp`:
//! `cargo test --features otlp --test traces`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

mod collector;
mod monitor;
mod own_tracer;
mod relay;

/// What the other integration tests stand on too.
#[path = "../support"]
mod support {
    #![allow(dead_code, reason = "the other tests use the rest")]

    pub(crate) mod monitor;
    pub(crate) mod redis;
    pub(crate) mod wait;

    pub(crate) fn tls() {
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// The trace of the producers in these tests, and their spans in it.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";

/// How a producer writes down where in which trace it is; `flags` is `01` when it is recorded.
fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PRODUCER}-{flags}")
}

#[test]
fn a_collector_that_cannot_be_used_is_told_with_its_setting_and_no_secret() {
    use shepherd_monitor::traces::{Collector, ENDPOINT, HEADERS};

    for endpoint in ["localhost:4318", "http://", "https:///x", "http://a b", "grpc://x"] {
        assert_eq!(Collector::new(endpoint, "", "x").unwrap_err().setting, ENDPOINT, "{endpoint}");
    }
    for headers in ["s3cret", "=s3cret", "a b=s3cret", "a=%zz", "a=%0d%0as3cret"] {
        let told = Collector::new("http://x", headers, "x").unwrap_err().to_string();
        assert!(told.contains(HEADERS) && !told.contains("s3cret"), "{told}");
    }
    let collector = Collector::new("http://x:4318/", "api-key=s3cret,authorization=Bearer%20y%3D", "x").unwrap();
    assert!(!format!("{collector:?}").contains("s3cret"));
}
