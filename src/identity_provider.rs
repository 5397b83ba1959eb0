//! Client of an identity provider: OpenID Connect, authorization code flow with PKCE.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::http::Response;
use openidconnect::{
    AccessToken, AdditionalClaims, AuthType, AuthorizationCode, Client, ClientId, ClientSecret, ConfigurationError,
    CsrfToken, DiscoveryError, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, SignatureVerificationError, StandardErrorResponse, StandardTokenResponse,
    SubjectIdentifier, TokenResponse as _, UserInfoClaims,
};
use openidconnect::{ClaimsVerificationError, UserInfoError};
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::access::Role;
use crate::access::oidc::{NotPermitted, Oidc, StartedLogin};
use crate::error_chain::{root_cause, tls_error};
use crate::http_client::{self, ANSWER_WITHIN};
use crate::printable::{shortened, visible};
use crate::tls;

/// The configuration of the provider is read again after this.
const CONFIGURATION_HOLDS: Duration = Duration::from_secs(3600);
/// Minimum pause between two reads of the configuration.
const PAUSE: Duration = Duration::from_secs(5);
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
    /// ID of the user at the provider, which never changes.
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
    requests: Semaphore,
}

#[derive(Default)]
struct Known {
    configuration: Option<(CoreProviderMetadata, Instant)>,
    failed: Option<(LoginError, Instant)>,
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
        self.configuration(Instant::now()).await.map(drop)
    }

    /// Starts a login: the URL to send the browser to, and what to remember.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`].
    pub async fn begin(&self, next: String, now: u64) -> Result<(String, StartedLogin), LoginError> {
        let client = self.client(self.configuration(Instant::now()).await?);
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
        let _one_of_few = self.requests.acquire().await;
        let client = self.client(self.configuration(Instant::now()).await?);
        let answer = self.exchange(&client, login, code).await?;
        let (subject, mut claims) = self.verified(client, &answer, login).await?;
        if !self.settings.is_complete(&claims) {
            let more = self.user_info(answer.access_token().clone(), subject.clone()).await?;
            // What is signed takes precedence.
            claims = more.into_iter().chain(claims).collect();
        }
        let (name, role) = self.settings.user(&claims)?;
        Ok(Authenticated { name, role, subject: subject.to_string() })
    }

    /// Configuration of the provider, read again if it is older than [`CONFIGURATION_HOLDS`] at `now`.
    async fn configuration(&self, now: Instant) -> Result<CoreProviderMetadata, LoginError> {
        let held = |known: &Known| {
            let (configuration, read) = known.configuration.clone()?;
            Some((configuration, now.saturating_duration_since(read) < CONFIGURATION_HOLDS))
        };
        let old = match held(&self.known()) {
            Some((configuration, true)) => return Ok(configuration),
            old => old.map(|(configuration, _)| configuration),
        };
        match (self.discover().await, old) {
            (Ok(configuration), _) => Ok(configuration),
            (Err(error), Some(old)) => {
                tracing::warn!(error = error.to_string(), "the configuration of the identity provider is outdated");
                Ok(old)
            }
            (Err(error), None) => Err(error),
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
        let mut known = self.known();
        match &read {
            Ok(configuration) => {
                *known = Known { configuration: Some((configuration.clone(), Instant::now())), failed: None };
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
            DiscoveryError::Response(status, _, _) => format!(
                "{issuer} answered {status} for /.well-known/openid-configuration: MONITOR_OIDC_ISSUER must be the issuer URL \
                 of an OpenID Connect provider"
            ),
            DiscoveryError::Validation(why) => format!(
                "the identity provider calls itself differently: {}; MONITOR_OIDC_ISSUER must be exactly its issuer",
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
            RequestTokenError::Parse(why, _) => unavailable(format!(
                "the token endpoint of the identity provider sent an invalid answer ({})",
                shown(&why.to_string())
            )),
            RequestTokenError::Other(why) => {
                unavailable(format!("the token endpoint of the identity provider failed: {}", shown(&why)))
            }
        })
    }

    /// Subject and claims of the ID token, verified with the keys of the provider. Its keys may be new.
    async fn verified(
        &self,
        client: OidcClient,
        answer: &TokenResponse,
        login: &StartedLogin,
    ) -> Result<(SubjectIdentifier, Map<String, Value>), LoginError> {
        let rejected = |why: &str| LoginError::Rejected(format!("the ID token of the identity provider {why}"));
        let token = answer.id_token().ok_or_else(|| rejected("is missing"))?;
        let nonce = Nonce::new(login.nonce.clone());
        let read = |client: &OidcClient| {
            let verifier = client.id_token_verifier().set_allowed_algs(SIGNATURES);
            let claims = token.claims(&verifier, &nonce)?;
            Ok((claims.subject().clone(), object(claims)))
        };
        let outcome = match read(&client) {
            Err(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey)) => {
                read(&self.client(self.discover().await?))
            }
            outcome => outcome,
        };
        outcome.map_err(|error: ClaimsVerificationError| match error {
            ClaimsVerificationError::Expired(_) => {
                rejected("expired before it arrived: check the clocks of both machines")
            }
            ClaimsVerificationError::InvalidAudience(_) => {
                rejected("is for another application (aud): check MONITOR_OIDC_CLIENT_ID")
            }
            ClaimsVerificationError::InvalidNonce(_) => rejected("belongs to another login (nonce)"),
            ClaimsVerificationError::SignatureVerification(why) => {
                rejected(&format!("is not signed by the provider ({})", shown(&why.to_string())))
            }
            other => rejected(&format!("is invalid ({})", shown(&other.to_string()))),
        })
    }

    /// Claims of the provider's user info endpoint; empty if it has none.
    async fn user_info(&self, access: AccessToken, user: SubjectIdentifier) -> Result<Map<String, Value>, LoginError> {
        let client = self.client(self.configuration(Instant::now()).await?);
        let Ok(request) = client.user_info(access, Some(user)) else { return Ok(Map::new()) };
        let send = |request| self.send(request);
        let info: Result<UserInfoClaims<OtherClaims, CoreGenderClaim>, _> = request.request_async(&send).await;
        match info {
            Ok(info) => Ok(object(&info)),
            Err(UserInfoError::ClaimsVerification(why)) => Err(LoginError::Rejected(format!(
                "the user info of the identity provider is invalid ({})",
                shown(&why.to_string())
            ))),
            Err(error) => Err(LoginError::Unavailable(format!(
                "the user info of the identity provider cannot be read: {}",
                shown(&root_cause(&error))
            ))),
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

/// Untrusted text for messages.
fn shown(text: &str) -> String {
    shortened(&visible(text), MOST_SHOWN)
}

/// All claims by name.
fn object(claims: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(claims)) => claims,
        _ => Map::new(),
    }
}
