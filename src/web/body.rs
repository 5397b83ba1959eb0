//! Bodies of change requests: JSON from programs, a form from pages.

use actix_web::dev::Payload;
use actix_web::web::{Form, Json};
use actix_web::{Error, FromRequest, HttpRequest};
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;

use super::alerts::is_form;

/// Maximum size of a body, bytes.
pub(super) const MOST_BODY: usize = 256 << 10;

/// A parsed body.
pub struct Body<T> {
    /// The parsed value.
    pub given: T,
    /// The request is a form from a page.
    pub form: bool,
}

impl<T: DeserializeOwned + 'static> FromRequest for Body<T> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        if is_form(request) {
            let form = Form::<T>::from_request(request, payload);
            return Box::pin(async move { Ok(Self { given: form.await?.into_inner(), form: true }) });
        }
        let json = Json::<T>::from_request(request, payload);
        Box::pin(async move { Ok(Self { given: json.await?.into_inner(), form: false }) })
    }
}
