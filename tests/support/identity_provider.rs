//! OpenID Connect providers: a real one, and a scripted one whose ID tokens a test chooses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::servers::HeldPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::wait::eventually;

/// oidc-provider, which is certified by the OpenID Foundation; `tests/identity_provider/provider.js` configures it.
pub(crate) struct RealProvider {
    port: HeldPort,
    _reaper: Reaper,
}

impl RealProvider {
    /// A provider that sends groups in `claims`, `id_token` or `userinfo`.
    pub(crate) async fn start(redirect_url: &str, claims: &str) -> Self {
        super::tls();
        let port = HeldPort::take().unwrap();
        let reaper = Reaper::start("identity-provider", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/identity_provider/provider.js");
        reaper.serve(&["node", script, &port.number().to_string(), redirect_url, claims]).unwrap();
        let provider = Self { port, _reaper: reaper };
        eventually("the identity provider starts", Duration::from_secs(30), || async {
            let configuration = reqwest::get(format!("{}/.well-known/openid-configuration", provider.issuer())).await;
            configuration.ok().filter(|answer| answer.status() == 200)
        })
        .await;
        provider
    }

    /// Another site than that of the monitor, for browsers.
    pub(crate) fn issuer(&self) -> String {
        format!("http://localhost:{}", self.port.number())
    }
}

/// A key that signs ID tokens.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    id: &'static str,
}

impl SigningKey {
    pub(crate) fn generate(id: &'static str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self { pair: EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap(), id }
    }

    fn public(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({"kty": "EC", "use": "sig", "crv": "P-256", "kid": self.id, "x": x, "y": y})
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let text = unsigned(&json!({"alg": "ES256", "kid": self.id}), claims);
        let signature = self.pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and claims of a token.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    format!("{header}.{claims}")
}

/// Responses of the scripted provider.
struct Script {
    configuration: Value,
    keys: Vec<Value>,
    /// Status and body of the token endpoint.
    token: (u16, Value),
}

/// A provider whose responses the test sets.
pub(crate) struct ScriptedProvider {
    issuer: String,
    script: Arc<Mutex<Script>>,
}

impl ScriptedProvider {
    pub(crate) async fn start(key: &SigningKey) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let configuration = json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/auth"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/jwks"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        let script = Script { configuration, keys: vec![key.public()], token: (500, json!({})) };
        let script = Arc::new(Mutex::new(script));
        let shared = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 8192];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let (status, body) = {
                    let script = shared.lock().unwrap();
                    match path {
                        "/.well-known/openid-configuration" => (200, script.configuration.clone()),
                        "/jwks" => (200, json!({"keys": script.keys})),
                        "/token" => script.token.clone(),
                        _ => (404, Value::Null),
                    }
                };
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        Self { issuer, script }
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Publishes this key instead of the others.
    pub(crate) fn rotate(&self, key: &SigningKey) {
        self.script.lock().unwrap().keys = vec![key.public()];
    }

    /// Responds to the next token requests with this ID token.
    pub(crate) fn issue(&self, id_token: &str) {
        let token = json!({"access_token": "a", "token_type": "Bearer", "id_token": id_token});
        self.script.lock().unwrap().token = (200, token);
    }

    /// Responds to the next token requests with this error.
    pub(crate) fn refuse(&self, error: &str) {
        self.script.lock().unwrap().token = (401, json!({"error": error, "error_description": "refused by the test"}));
    }

    /// Changes its published configuration.
    pub(crate) fn publish(&self, name: &str, value: Value) {
        self.script.lock().unwrap().configuration[name] = value;
    }
}
