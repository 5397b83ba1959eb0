//! Client of an identity provider: OpenID Connect, authorization code flow with PKCE.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openidconnect::ClaimsVerificationError;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::http::{Response, StatusCode};
use openidconnect::{
    AccessToken, AdditionalClaims, AuthType, AuthorizationCode, Client, ClientId, ClientSecret, ConfigurationError,
    CsrfToken, DiscoveryError, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, SignatureVerificationError, StandardErrorResponse, StandardTokenResponse,
    TokenResponse as _,
};
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::access::Role;
use crate::access::oidc::{NotPermitted, Oidc, StartedLogin};
use crate::error_chain::{root_cause, tls_error};
use crate::http_client::{self, ANSWER_WITHIN};
use crate::printable::excerpt;
use crate::tls;

/// The configuration of the provider is read again after this.
const CONFIGURATION_HOLDS: Duration = Duration::from_secs(3600);
/// Minimum pause between two reads of the configuration.
const PAUSE: Duration = Duration::from_secs(5);
/// Maximum time that a login waits while others ask the provider.
const WAIT: Duration = Duration::from_secs(10);
/// Interval of logging that the provider fails.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// Maximum size of an answer, bytes.
const LARGEST: usize = 512 << 10;
/// Concurrent requests: anonymous clients can cause them.
const CONCURRENT: usize = 8;
/// Maximum length of an answer in an error message, characters.
const MOST_SHOWN: usize = 200;

/// Signatures of ID tokens that are accepted. Those with the client secret as the key are not: the secret is sent to the
/// provider, and may be short.
const SIGNATURES: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// Claims that the specification does not define, such as groups.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OtherClaims {
    #[serde(flatten)]
    claims: Map<String, Value>,
}

impl AdditionalClaims for OtherClaims {}

type TokenFields = IdTokenFields<
    OtherClaims,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type TokenResponse = StandardTokenResponse<TokenFields, CoreTokenType>;
type ErrorResponse = StandardErrorResponse<CoreErrorResponseType>;
type OidcClient = Client<
    OtherClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    ErrorResponse,
    TokenResponse,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// Why a login failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The provider cannot be used: unreachable, or configured differently.
    #[error("{0}")]
    Unavailable(String),
    /// The code or the ID token is invalid.
    #[error("{0}")]
    Rejected(String),
    /// An authenticated user without a role.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
}

/// A user whom the provider authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// User name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Permanent ID of the user at the provider.
    pub subject: String,
}

/// A request to the provider failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAnswered(String);

/// An identity provider.
pub struct IdentityProvider {
    settings: Oidc,
    issuer: IssuerUrl,
    redirect_url: RedirectUrl,
    http: reqwest::Client,
    known: Mutex<Known>,
    /// Held while the configuration is read, by one login for all.
    discovering: tokio::sync::Mutex<()>,
    requests: Semaphore,
}

#[derive(Default)]
struct Known {
    configuration: Option<(CoreProviderMetadata, Instant)>,
    failed: Option<(LoginError, Instant)>,
    reported: Option<Instant>,
}

impl IdentityProvider {
    /// Prepares the client. Does not connect.
    ///
    /// # Errors
    /// The invalid setting.
    pub fn new(settings: Oidc) -> Result<Self, String> {
        let authorities = settings.authorities.as_deref().map(|path| ("MONITOR_OIDC_CA_FILE", path));
        // A redirect could lead the secret to another host.
        let http = http_client::builder(authorities)?.redirect(Policy::none()).build();
        Ok(Self {
            issuer: IssuerUrl::new(settings.issuer.clone()).map_err(|e| format!("MONITOR_OIDC_ISSUER: {e}"))?,
            redirect_url: RedirectUrl::new(settings.redirect_url.clone()).map_err(|e| format!("SERVER_URL: {e}"))?,
            http: http.map_err(|_| "no HTTP client: cannot initialize TLS".to_owned())?,
            settings,
            known: Mutex::default(),
            discovering: tokio::sync::Mutex::default(),
            requests: Semaphore::new(CONCURRENT),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Issuer URL.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// Host of the issuer URL.
    #[must_use]
    pub fn host(&self) -> &str {
        self.issuer.url().host_str().unwrap_or_default()
    }

    /// Whether `iss` of an answer is this provider. Older providers do not send it.
    #[must_use]
    pub fn is_issuer(&self, iss: Option<&str>) -> bool {
        iss.is_none_or(|iss| iss == self.settings.issuer)
    }

    /// Reads and checks the configuration of the provider.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`].
    pub async fn check(&self) -> Result<(), LoginError> {
        self.configuration().await.map(drop)
    }

    /// Starts a login: the URL to send the browser to, and what to remember.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`].
    pub async fn begin(&self, next: String, now: u64) -> Result<(String, StartedLogin), LoginError> {
        let client = self.client(self.configuration().await?);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state, nonce) = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, Nonce::new_random)
            .add_scopes(self.settings.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .url();
        let login = StartedLogin {
            state: state.into_secret(),
            nonce: nonce.secret().clone(),
            verifier: verifier.into_secret(),
            next,
            started: now,
        };
        Ok((url.to_string(), login))
    }

    /// Completes a login with the code that the browser brought back.
    ///
    /// # Errors
    /// If the provider fails, its answer is invalid, or the user has no role.
    pub async fn finish(&self, login: &StartedLogin, code: String) -> Result<Authenticated, LoginError> {
        let finished = match tokio::time::timeout(WAIT, self.requests.acquire()).await {
            Ok(_one_of_few) => self.authenticate(login, code).await,
            Err(_) => Err(LoginError::Unavailable(format!(
                "{CONCURRENT} logins are waiting for the identity provider, the maximum; log in again"
            ))),
        };
        if let Err(LoginError::Unavailable(why)) = &finished {
            self.report(why);
        }
        finished
    }

    async fn authenticate(&self, login: &StartedLogin, code: String) -> Result<Authenticated, LoginError> {
        let client = self.client(self.configuration().await?);
        let answer = self.exchange(&client, login, code).await?;
        let (subject, mut claims) = self.verified(&client, &answer, login).await?;
        if !self.settings.is_complete(&claims) {
            let more = self.user_info(answer.access_token(), &subject).await?;
            // What is signed takes precedence.
            claims = more.into_iter().chain(claims.into_iter().filter(|(_, value)| !value.is_null())).collect();
        }
        let (name, role) = self.settings.user(&claims)?;
        Ok(Authenticated { name, role, subject })
    }

    /// Logs, at most once per [`REPORT_EVERY`], that the provider fails.
    fn report(&self, why: &str) {
        let mut known = self.known();
        if known.reported.is_none_or(|then| then.elapsed() >= REPORT_EVERY) {
            known.reported = Some(Instant::now());
            drop(known);
            tracing::warn!(error = why, "users cannot log in at the identity provider");
        }
    }

    /// Configuration of the provider, and whether it is recent.
    fn held(&self) -> Option<(CoreProviderMetadata, bool)> {
        let known = self.known();
        let (configuration, read) = known.configuration.as_ref()?;
        Some((configuration.clone(), read.elapsed() < CONFIGURATION_HOLDS))
    }

    /// Configuration of the provider, read again if it is older than [`CONFIGURATION_HOLDS`]. If that fails, or while another
    /// login does it, the old one is used.
    async fn configuration(&self) -> Result<CoreProviderMetadata, LoginError> {
        let old = match self.held() {
            Some((configuration, true)) => return Ok(configuration),
            old => old.map(|(configuration, _)| configuration),
        };
        let discovering = match (self.discovering.try_lock(), old.clone()) {
            (Ok(guard), _) => guard,
            (Err(_), Some(old)) => return Ok(old),
            (Err(_), None) => self.discovering.lock().await,
        };
        if let Some((configuration, true)) = self.held() {
            return Ok(configuration);
        }
        let read = self.discover().await;
        drop(discovering);
        match (read, old) {
            (Err(_), Some(old)) => Ok(old),
            (read, _) => read,
        }
    }

    /// The configuration with its current keys, unless it was read within the last [`PAUSE`].
    async fn configuration_anew(&self) -> Result<CoreProviderMetadata, LoginError> {
        let _one = self.discovering.lock().await;
        let recent = {
            let known = self.known();
            known.configuration.as_ref().filter(|(_, read)| read.elapsed() < PAUSE).map(|(known, _)| known.clone())
        };
        match recent {
            Some(recent) => Ok(recent),
            None => self.discover().await,
        }
    }

    async fn discover(&self) -> Result<CoreProviderMetadata, LoginError> {
        if let Some((error, failed)) = &self.known().failed
            && failed.elapsed() < PAUSE
        {
            return Err(error.clone());
        }
        let send = |request| self.send(request);
        let read = CoreProviderMetadata::discover_async(self.issuer.clone(), &send).await;
        let read = read.map_err(|error| self.no_configuration(error)).and_then(|found| self.is_encrypted(found));
        if let Err(error) = &read {
            self.report(&error.to_string());
        }
        let mut known = self.known();
        match &read {
            Ok(configuration) => {
                known.configuration = Some((configuration.clone(), Instant::now()));
                known.failed = None;
            }
            Err(error) => known.failed = Some((error.clone(), Instant::now())),
        }
        read
    }

    fn no_configuration(&self, error: DiscoveryError<NotAnswered>) -> LoginError {
        let issuer = &self.settings.issuer;
        LoginError::Unavailable(match error {
            DiscoveryError::Request(NotAnswered(why)) => {
                format!("the identity provider {issuer} cannot be reached: {why}")
            }
            DiscoveryError::Response(StatusCode::NOT_FOUND, _, _) => format!(
                "{issuer}/.well-known/openid-configuration does not exist: MONITOR_OIDC_ISSUER must be the issuer URL of an \
                 OpenID Connect provider"
            ),
            DiscoveryError::Response(status, _, why) => {
                format!(
                    "the identity provider {issuer} answered {status} when asked for its configuration or keys: {}",
                    shown(&why)
                )
            }
            DiscoveryError::Validation(why) => format!(
                "the identity provider reports another issuer: {}; MONITOR_OIDC_ISSUER must be exactly its issuer",
                shown(&why)
            ),
            DiscoveryError::Parse(why) => format!(
                "{issuer} is not an OpenID Connect provider: its configuration is invalid ({})",
                shown(&why.to_string())
            ),
            other => format!("the configuration of {issuer} cannot be read: {}", shown(&other.to_string())),
        })
    }

    /// The client secret and access tokens are sent encrypted, if the issuer is.
    fn is_encrypted(&self, found: CoreProviderMetadata) -> Result<CoreProviderMetadata, LoginError> {
        let mut urls = vec![found.authorization_endpoint().url(), found.jwks_uri().url()];
        urls.extend(found.token_endpoint().map(|endpoint| endpoint.url()));
        urls.extend(found.userinfo_endpoint().map(|endpoint| endpoint.url()));
        match urls.iter().find(|url| self.issuer.url().scheme() == "https" && url.scheme() != "https") {
            Some(url) => Err(LoginError::Unavailable(format!(
                "the identity provider names an unencrypted address: {}",
                shown(url.as_str())
            ))),
            None => Ok(found),
        }
    }

    fn client(&self, configuration: CoreProviderMetadata) -> OidcClient {
        // Without a list, the specification says basic.
        let in_body = configuration.token_endpoint_auth_methods_supported().is_some_and(|methods| {
            !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && methods.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let secret = self.settings.client_secret.clone().map(ClientSecret::new);
        let id = ClientId::new(self.settings.client_id.clone());
        Client::from_provider_metadata(configuration, id, secret)
            .set_redirect_uri(self.redirect_url.clone())
            .set_auth_type(if in_body { AuthType::RequestBody } else { AuthType::BasicAuth })
    }

    async fn exchange(
        &self,
        client: &OidcClient,
        login: &StartedLogin,
        code: String,
    ) -> Result<TokenResponse, LoginError> {
        let unavailable = |why: String| LoginError::Unavailable(why);
        let request = client.exchange_code(AuthorizationCode::new(code)).map_err(|error: ConfigurationError| {
            unavailable(format!("the identity provider has no token endpoint: {error}"))
        })?;
        let request = request.set_pkce_verifier(PkceCodeVerifier::new(login.verifier.clone()));
        let send = |request| self.send(request);
        request.request_async(&send).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(refused) => match refused.error() {
                CoreErrorResponseType::InvalidClient | CoreErrorResponseType::UnauthorizedClient => {
                    unavailable(format!(
                        "the identity provider refuses this application ({}): check MONITOR_OIDC_CLIENT_ID and \
                         MONITOR_OIDC_CLIENT_SECRET",
                        shown(&refused.to_string())
                    ))
                }
                _ => LoginError::Rejected(format!(
                    "the identity provider refused the login code ({}): log in again",
                    shown(&refused.to_string())
                )),
            },
            RequestTokenError::Request(NotAnswered(why)) => {
                unavailable(format!("the token endpoint of the identity provider cannot be reached: {why}"))
            }
            RequestTokenError::Parse(why, body) => unavailable(format!(
                "the token endpoint of the identity provider sent an invalid answer ({}): {:?}",
                shown(&why.to_string()),
                beginning(&body)
            )),
            RequestTokenError::Other(why) => {
                unavailable(format!("the token endpoint of the identity provider failed: {}", shown(&why)))
            }
        })
    }

    /// Subject and claims of the ID token, verified with the keys of the provider. Its keys may be new.
    async fn verified(
        &self,
        client: &OidcClient,
        answer: &TokenResponse,
        login: &StartedLogin,
    ) -> Result<(String, Map<String, Value>), LoginError> {
        let rejected = |why: &str| LoginError::Rejected(format!("the ID token of the identity provider {why}"));
        let token = answer.id_token().ok_or_else(|| rejected("is missing"))?;
        let nonce = Nonce::new(login.nonce.clone());
        let read = |client: &OidcClient| {
            // Other audiences may be services of the same project; then `azp` says for whom the token is.
            let verifier = client.id_token_verifier().set_allowed_algs(SIGNATURES);
            let claims = token.claims(&verifier.set_other_audience_verifier_fn(|_| true), &nonce)?;
            let is_ours = claims
                .authorized_party()
                .map_or(claims.audiences().len() == 1, |party| **party == *self.settings.client_id);
            match is_ours {
                true => Ok((claims.subject().to_string(), object(claims))),
                false => Err(ClaimsVerificationError::InvalidAudience(String::new())),
            }
        };
        let outcome = match read(client) {
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey | SignatureVerificationError::CryptoError(_),
            )) => read(&self.client(self.configuration_anew().await?)),
            outcome => outcome,
        };
        outcome.map_err(|error: ClaimsVerificationError| match error {
            ClaimsVerificationError::Expired(_) => {
                rejected("expired before it arrived: check the clocks of both machines")
            }
            ClaimsVerificationError::InvalidAudience(_) => {
                rejected("is for another application (aud, azp): check MONITOR_OIDC_CLIENT_ID")
            }
            ClaimsVerificationError::InvalidNonce(_) => rejected("belongs to another login (nonce)"),
            ClaimsVerificationError::SignatureVerification(why) => {
                rejected(&format!("is not signed by the provider ({})", shown(&why.to_string())))
            }
            other => rejected(&format!("is invalid ({})", shown(&other.to_string()))),
        })
    }

    /// Claims of the provider's user info endpoint; empty if it has none. Read as plain JSON: providers deviate from the
    /// specification in claims that do not matter here.
    async fn user_info(&self, access: &AccessToken, subject: &str) -> Result<Map<String, Value>, LoginError> {
        let configuration = self.configuration().await?;
        let Some(endpoint) = configuration.userinfo_endpoint() else { return Ok(Map::new()) };
        let unavailable = |why: String| {
            LoginError::Unavailable(format!("the user info of the identity provider cannot be read: {why}"))
        };
        let request = openidconnect::http::Request::get(endpoint.url().as_str())
            .header("accept", "application/json")
            .header("authorization", format!("Bearer {}", access.secret()))
            .body(Vec::new())
            .map_err(|error| unavailable(error.to_string()))?;
        let answer = self.send(request).await.map_err(|NotAnswered(why)| unavailable(why))?;
        if answer.status() != StatusCode::OK {
            return Err(unavailable(format!("it answered {}: {:?}", answer.status(), beginning(answer.body()))));
        }
        let claims: Map<String, Value> = serde_json::from_slice(answer.body())
            .map_err(|error| unavailable(format!("{error}: {:?}", beginning(answer.body()))))?;
        match claims.get("sub").and_then(Value::as_str) == Some(subject) {
            true => Ok(claims),
            false => {
                Err(LoginError::Rejected("the user info of the identity provider is of another user (sub)".to_owned()))
            }
        }
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, NotAnswered> {
        let failed = |error: reqwest::Error| {
            NotAnswered(if error.is_timeout() {
                format!("timed out after {} s", ANSWER_WITHIN.as_secs())
            } else {
                tls_error(&error, &tls::OIDC).unwrap_or_else(|| root_cause(&error))
            })
        };
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let mut response = self.http.execute(request).await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST {
                return Err(NotAnswered(format!("it answered with more than {LARGEST} bytes")));
            }
        }
        let mut answer = Response::new(body);
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        Ok(answer)
    }
}

/// Beginning of an answer that is not what was expected, for messages. JSON and JWTs may contain tokens and personal data.
fn beginning(body: &[u8]) -> String {
    let body = body.trim_ascii_start();
    if body.starts_with(b"{") || body.starts_with(b"eyJ") {
        return "(not shown)".to_owned();
    }
    String::from_utf8_lossy(body.get(..MOST_SHOWN).unwrap_or(body)).into_owned()
}

/// Untrusted text for messages.
fn shown(text: &str) -> String {
    excerpt(text, MOST_SHOWN)
}

/// All claims by name.
fn object(claims: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(claims)) => claims,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::beginning;

    #[test]
    fn messages_quote_error_pages_and_no_tokens() {
        assert_eq!(beginning(b"<html>502 Bad Gateway"), "<html>502 Bad Gateway");
        for secret in [&br#" {"access_token":"s3cret","expires_in":"x"}"#[..], b"eyJhbGciOiJFUzI1NiJ9.s3cret"] {
            assert!(!beginning(secret).contains("s3cret"));
        }
    }
}
