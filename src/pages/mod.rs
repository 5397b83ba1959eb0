//! STUB replaced by the pages branch.
#![allow(missing_docs, reason = "stub")]
use crate::fleet::snapshot::Snapshot;
use std::sync::Arc;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct PagesError;
pub struct Pages;
impl Pages {
    pub fn new() -> Result<Self, PagesError> {
        Ok(Self)
    }
}
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub maturity: Option<String>,
    pub url: Option<String>,
}
pub struct LiveView {
    last: Option<Arc<Snapshot>>,
}
impl LiveView {
    pub fn new(_: Arc<Pages>, _: Environment) -> Self {
        Self { last: None }
    }
    pub fn update(&mut self, s: &Arc<Snapshot>) -> Result<Option<String>, PagesError> {
        self.last = Some(s.clone());
        Ok(Some("{}".into()))
    }
    pub fn since(&self, _: u64, _: u64) -> Result<Option<String>, PagesError> {
        Ok(None)
    }
    pub fn page(&self, _: &str) -> Result<String, PagesError> {
        Ok("stub".into())
    }
}
pub mod assets {
    pub struct Asset {
        pub bytes: std::borrow::Cow<'static, [u8]>,
        pub content_type: &'static str,
        pub etag: String,
    }
    pub fn get(_: &str) -> Option<Asset> {
        None
    }
}
