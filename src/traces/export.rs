//! Exports spans to an OTLP collector in batches, on a separate thread.

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

/// How long dropping an [`Export`] waits for the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Exports spans until it is dropped. Dropping it flushes the remaining spans for up to two seconds.
///
/// Creating and dropping it block on a thread: in asynchronous code, do both in `spawn_blocking`.
#[derive(Debug)]
pub struct Export(SdkTracerProvider);

impl Export {
    /// Starts the export. Does not connect yet; while the collector is unreachable, spans are dropped and nothing else
    /// is affected.
    ///
    /// # Errors
    /// If the exporter rejects the settings.
    pub fn to(collector: &Collector) -> Result<Self, String> {
        // Another part of the program may have installed the same provider.
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

    /// Layer that exports spans of level INFO and above with their log lines.
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
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
