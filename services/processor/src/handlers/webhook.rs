//! `webhook`: tells a project's receiver of the end of a job, signed as Standard Webhooks
//! describes it (<https://www.standardwebhooks.com>).
//!
//! The project sets the receiver's address, and a project is not trusted as an operator is: names
//! are resolved here, and addresses outside the public internet are refused.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use job::{Usage, webhook::Webhook as Receiver};
use nats::wire::Work;
use reqwest::{
    StatusCode, Url,
    dns::{Addrs, Name, Resolve, Resolving},
};
use sha2::Sha256;

use super::{client, later::later, public};
use crate::handler::{Context, Handler, Outcome};

/// How long a receiver may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Tells receivers.
#[derive(Clone, Debug)]
pub struct Webhook {
    client: reqwest::Client,
    private: bool,
}

impl Webhook {
    /// Delivers to receivers on the public internet, and to others if `private` is set.
    ///
    /// # Errors
    /// If the machine's certificates cannot be read.
    pub fn new(private: bool) -> anyhow::Result<Self> {
        let mut builder = client::builder().timeout(ANSWER_WITHIN).no_proxy();
        if !private {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        Ok(Self { client: builder.build()?, private })
    }

    async fn tell(&self, work: &Work) -> Outcome {
        let Some(options) = &work.options else {
            return Outcome::reject("the project's webhook was removed");
        };
        // What cannot be read now, a newer processor may read.
        let receiver: Receiver = match serde_json::from_str(options.get()) {
            Ok(receiver) => receiver,
            Err(error) => return Outcome::retry(format!("the webhook cannot be read: {error}")),
        };
        let request = match self.request(work, &receiver) {
            Ok(request) => request,
            Err(error) => return Outcome::retry(format!("{error:#}")),
        };
        let url = request.url().clone();
        // Only the status counts. The body is neither read nor shown to the owner of the webhook:
        // it could come from a network that they cannot reach.
        match self.client.execute(request).await {
            Ok(answer) if answer.status().is_success() => {
                Outcome::Done { result: None, usage: Usage::default() }
            }
            Ok(answer) => {
                let error = format!("answered {}", answer.status());
                if answer.status() == StatusCode::GONE {
                    return Outcome::reject(error);
                }
                let after = later(answer.status(), answer.headers(), service::now_ms());
                if client::is_later(answer.status(), after) {
                    return Outcome::Defer { error, after, usage: Usage::default() };
                }
                Outcome::Retry { error, after, usage: Usage::default() }
            }
            Err(error) => Outcome::retry(client::could_not_ask(&url, error)),
        }
    }

    fn request(&self, work: &Work, receiver: &Receiver) -> anyhow::Result<reqwest::Request> {
        let url = client::url(&receiver.url)?;
        if !self.private {
            check_literal(&url)?;
        }
        let id = work.job.to_string();
        let at = (service::now_ms() / 1_000).to_string();
        let body = work.data.get();
        let keys = receiver.keys().context("a secret is not whsec_ and base64")?;
        let signatures = keys.iter().map(|key| sign(key, &id, &at, body));
        let signatures = signatures.collect::<anyhow::Result<Vec<String>>>()?.join(" ");
        let request = self.client.post(url).body(body.to_owned());
        let request = request.header("content-type", "application/json");
        let request = request.header("webhook-id", id).header("webhook-timestamp", at);
        Ok(request.header("webhook-signature", signatures).build()?)
    }
}

impl Handler for Webhook {
    async fn handle(&self, work: Arc<Work>, _: Context) -> Outcome {
        self.tell(&work).await
    }
}

/// The signature of a body that is sent under this id at this time, in seconds since 1970.
fn sign(key: &[u8], id: &str, at: &str, body: &str) -> anyhow::Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).context("the secret is no key")?;
    for part in [id, ".", at, ".", body] {
        mac.update(part.as_bytes());
    }
    Ok(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

/// Refuses a URL whose host cannot be public: no resolver is asked for those.
fn check_literal(url: &Url) -> anyhow::Result<()> {
    let host = url.host_str().unwrap_or_default();
    anyhow::ensure!(public::may_be_public(url), not_public(host));
    Ok(())
}

fn not_public(host: &str) -> String {
    format!(
        "{host} is not on the public internet; an operator allows it with JOBMESH_WEBHOOK_PRIVATE=true"
    )
}

/// Resolves names to public addresses only.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str();
            let found = tokio::net::lookup_host((host, 0)).await?;
            let found: Vec<SocketAddr> =
                found.filter(|address| public::is_public(address.ip())).collect();
            if found.is_empty() {
                return Err(not_public(host).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::test_work;

    /// The example of the specification's reference libraries.
    #[test]
    fn a_body_is_signed_as_the_specification_says() {
        let receiver = |secret: &str| Receiver {
            url: "https://example.com".into(),
            secret: secret.into(),
            previous_secret: None,
            events: None,
            max_attempts: None,
            retry: None,
        };
        let keys = receiver("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").keys();
        let signature = sign(
            &keys.expect("it is base64")[0],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(
            signature.expect("the secret is one"),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert_eq!(receiver("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").keys(), None);
    }

    /// Addresses, names that lead to one, and spellings of one.
    #[tokio::test]
    async fn what_is_not_on_the_public_internet_is_not_connected_to() -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let webhook = Webhook::new(false)?;
        for host in
            ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"]
        {
            let mut work = test_work("{}");
            let options = serde_json::json!({
                "url": format!("http://{host}:{port}/"), "secret": "whsec_AAAAAAAAAAAAAAAAAAAA",
            });
            work.options = Some(job::Json::of(&options)?);
            let outcome = webhook.tell(&work).await;
            let (Outcome::Reject { error, .. } | Outcome::Retry { error, .. }) = outcome else {
                panic!("{host} was told: {outcome:?}");
            };
            assert!(error.contains("not on the public internet"), "{host}: {error}");
        }
        let untold = webhook.tell(&test_work("{}")).await;
        assert_eq!(untold, Outcome::reject("the project's webhook was removed"));
        let nobody = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        assert!(nobody.is_err(), "somebody connected");
        Ok(())
    }
}
