//! Tokens of a registry: who wants one says in `WWW-Authenticate` where to get it.

use std::sync::Mutex;

use http_auth::{ChallengeRef, parse_challenges};
use reqwest::Url;
use reqwest::header::{self, HeaderValue};
use serde::Deserialize;

use crate::error::shown;
use crate::http::{Answer, Ask, Http};
use crate::{Secret, TransferError};

/// Longest answer of a server of tokens, in bytes.
const LONGEST_TOKEN: u64 = 256 << 10;

pub(super) struct Tokens {
    registry: Url,
    repo: String,
    credential: Option<Credential>,
    current: Mutex<Option<HeaderValue>>,
    /// One renewal at a time, however many requests find out that one is due.
    renewal: tokio::sync::Mutex<()>,
}

/// What the registry asks for goes only where its own challenge sends it.
struct Credential {
    header: HeaderValue,
    /// A token by itself, which needs no server of tokens.
    is_token: bool,
}

#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
}

impl Tokens {
    pub(super) fn new(
        registry: Url,
        repo: String,
        credential: Option<&Secret>,
    ) -> Result<Self, TransferError> {
        let parse = |secret: &Secret| {
            let header = super::super::authorization(secret)?;
            Ok::<_, TransferError>(Credential { header, is_token: !secret.reveal().contains(':') })
        };
        let credential = credential.map(parse).transpose()?;
        Ok(Self {
            registry,
            repo,
            credential,
            current: Mutex::default(),
            renewal: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn current(&self) -> Option<HeaderValue> {
        self.current.lock().expect("no panic while the token is changed").clone()
    }

    fn keep(&self, token: HeaderValue) -> HeaderValue {
        *self.current.lock().expect("no panic while the token is changed") = Some(token.clone());
        token
    }

    /// Another token than `before`, which the registry refused with `answer`; `None` when there is none to be had.
    pub(super) async fn renew(
        &self,
        http: &Http,
        answer: &Answer,
        before: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, TransferError> {
        let _turn = self.renewal.lock().await;
        let current = self.current();
        if current.as_ref() != before {
            return Ok(current);
        }
        if let Some(Credential { header, is_token: true }) = &self.credential {
            return Ok(before.is_none().then(|| self.keep(header.clone())));
        }
        let headers = answer.response.headers().get_all(header::WWW_AUTHENTICATE);
        let texts: Vec<&str> = headers.iter().filter_map(|value| value.to_str().ok()).collect();
        let challenges: Vec<ChallengeRef<'_>> =
            texts.iter().filter_map(|text| parse_challenges(text).ok()).flatten().collect();
        let of = |scheme: &str| challenges.iter().find(|c| c.scheme.eq_ignore_ascii_case(scheme));
        if let Some(challenge) = of("bearer") {
            return self.granted(http, &answer.url, challenge).await.map(|token| Some(self.keep(token)));
        }
        match (&self.credential, before) {
            (Some(Credential { header, .. }), None) if of("basic").is_some() => {
                Ok(Some(self.keep(header.clone())))
            }
            _ => Ok(None),
        }
    }

    /// Asks the server of tokens that the registry names. It may be on another host: the registry vouches for it, over the
    /// same connection over which it could ask for the credential itself.
    async fn granted(
        &self,
        http: &Http,
        from: &Url,
        challenge: &ChallengeRef<'_>,
    ) -> Result<HeaderValue, TransferError> {
        let parameter = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let malformed = |what| TransferError::Malformed { url: shown(from), what };
        let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
        let mut url = realm.ok_or_else(|| malformed("challenge with the URL of a realm"))?;
        http.may_lead(&self.registry, &url).await?;
        let scope = parameter("scope").unwrap_or_else(|| format!("repository:{}:pull", self.repo));
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = parameter("service") {
                query.append_pair("service", &service);
            }
            query.append_pair("scope", &scope);
        }
        let authorization = self.credential.as_ref().map(|credential| credential.header.clone());
        let ask = Ask { authorization, ..Ask::new(url) };
        let answer = http.get(&ask).await?;
        if !answer.response.status().is_success() {
            return Err(self.blame(answer.refusal(&ask).await));
        }
        let text = http.text(answer, LONGEST_TOKEN).await?;
        let granted: Option<Granted> = serde_json::from_slice(&text).ok();
        let token = granted.and_then(|granted| granted.token.or(granted.access_token));
        let token = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let mut token = token.ok_or_else(|| malformed("challenge whose realm gives a token"))?;
        token.set_sensitive(true);
        Ok(token)
    }

    /// A refusal of a token that nobody's credential is behind is a wish for a credential.
    pub(super) fn blame(&self, error: TransferError) -> TransferError {
        match error {
            TransferError::Denied { url, status, .. } if self.credential.is_none() => {
                TransferError::NeedsCredential { url, status }
            }
            TransferError::NeedsCredential { url, status } if self.credential.is_some() => {
                TransferError::Denied { url, status, said: String::new() }
            }
            other => other,
        }
    }
}
