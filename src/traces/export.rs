//! Spans on their way to a collector: gathered for some seconds, then sent by a thread of their own.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::Collector;

/// At the end, a collector that does not answer is waited for so long.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Sends spans until it is dropped, which sends what is left: within two seconds, or not at all.
///
/// It waits for a thread of its own, so make and drop it where that may be: in asynchronous code inside
/// `spawn_blocking`.
#[derive(Debug)]
pub struct Export(SdkTracerProvider);

impl Export {
    /// Begins. Nothing is connected yet, and a collector that is not there stops nothing: what it does not
    /// take in time is lost.
    ///
    /// # Errors
    /// What the exporter cannot use.
    pub fn to(collector: &Collector) -> Result<Self, String> {
        // Another part of the program may have chosen already, and chose the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", collector.endpoint))
            .with_headers(collector.headers.iter().cloned().collect())
            .build()
            .map_err(|error| format!("spans cannot be sent: {error}"))?;
        let resource = Resource::builder().with_service_name(collector.service.clone()).build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// What takes spans from level info on, and the log lines inside them, out of a subscriber.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.0.tracer(env!("CARGO_PKG_NAME"));
        let layer = tracing_opentelemetry::layer().with_location(false).with_threads(false).with_tracer(tracer);
        layer.with_filter(LevelFilter::INFO)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_WORDS) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
