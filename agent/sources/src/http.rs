//! Requests, with every hop of a redirect checked before it is made.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};

use crate::address::Reach;
use crate::body::Body;
use crate::error::{http, shown};
use crate::names::Names;
use crate::source::check_host;
use crate::{Access, TransferError};

const MOST_REDIRECTS: usize = 5;
/// Connections to one host that are kept for the next request.
const IDLE_CONNECTIONS: usize = 64;
/// How much of a refusal is read for what it says, in bytes.
const LONGEST_REFUSAL: u64 = 16 << 10;

/// Connections to the hosts of one origin. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client,
    names: Arc<Names>,
}

/// One GET.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) url: Url,
    pub(crate) range: Option<Range<u64>>,
    /// Only for the URL's own origin: redirects elsewhere are made without.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) accept: Option<&'static str>,
}

impl Ask {
    pub(crate) fn new(url: Url) -> Self {
        Self { url, range: None, authorization: None, accept: None }
    }
}

/// What came back, whatever its status.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Where it came from in the end.
    pub(crate) url: Url,
    /// The headers of the first redirect, where there was one: hubs say there what they redirect to.
    pub(crate) redirect: Option<HeaderMap>,
}

impl Http {
    /// `plain` is for loopback servers without TLS: no machine's list of authorities is needed to ask them.
    pub(crate) fn new(plain: bool, access: &Access) -> Result<Self, TransferError> {
        let names = Arc::new(Names::new(access));
        let builder = Client::builder()
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(access.connect)
            .read_timeout(access.idle)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .no_proxy()
            .referer(false)
            .redirect(Policy::none())
            .dns_resolver(Arc::clone(&names));
        let roots = access.extra_roots.iter().cloned();
        let builder = if plain { builder.tls_certs_only(roots) } else { builder.tls_certs_merge(roots) };
        Ok(Self { client: builder.build().map_err(TransferError::Client)?, names })
    }

    /// Checks a host before anything is asked of it.
    pub(crate) async fn check(&self, url: &Url) -> Result<Reach, TransferError> {
        self.names.check(url).await
    }

    /// Asks, and follows redirects as far as they are safe to follow. One try.
    pub(crate) async fn get(&self, ask: &Ask) -> Result<Answer, TransferError> {
        let (mut url, mut authorization) = (ask.url.clone(), ask.authorization.as_ref());
        let mut reach = self.names.check(&url).await?;
        let mut redirect = None;
        for _ in 0..=MOST_REDIRECTS {
            let response = self.once(ask, &url, authorization).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, url, redirect });
            }
            let Some(next) = location(&url, response.headers()) else {
                // Stores say that a bucket is elsewhere without saying where.
                return Ok(Answer { response, url, redirect });
            };
            reach = self.follow(&url, &next, reach).await?;
            if next.origin() != ask.url.origin() {
                authorization = None;
            }
            redirect = redirect.or_else(|| Some(response.headers().clone()));
            url = next;
        }
        Err(TransferError::Redirect { url: shown(&ask.url), why: "more than five times" })
    }

    /// Whether one place may name another that is asked in its stead, as for a redirect.
    pub(crate) async fn may_lead(&self, from: &Url, to: &Url) -> Result<(), TransferError> {
        let reach = self.names.check(from).await?;
        self.follow(from, to, reach).await.map(drop)
    }

    async fn once(
        &self,
        ask: &Ask,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, TransferError> {
        let mut request = self.client.get(url.clone());
        if let Some(Range { start, end }) = &ask.range {
            request = request.header(header::RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(types) = ask.accept {
            request = request.header(header::ACCEPT, types);
        }
        request.send().await.map_err(|error| {
            if error.is_connect() {
                self.names.doubt(url);
            }
            http(url, error)
        })
    }

    /// Whether one place may send us to another, and how far that is away.
    async fn follow(&self, from: &Url, to: &Url, reach: Reach) -> Result<Reach, TransferError> {
        let refused = |why| TransferError::Redirect { url: shown(from), why };
        if !matches!(to.scheme(), "https" | "http") || !to.username().is_empty() || to.password().is_some() {
            return Err(refused("to no plain https:// URL"));
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(refused("from https to http"));
        }
        if check_host(to).is_err() {
            return Err(refused("to an address that no model comes from"));
        }
        // A name can still lead to such an address.
        let next = self.names.check(to).await.map_err(|error| match error {
            TransferError::ForbiddenAddress { .. } => refused("to an address that no model comes from"),
            other => other,
        })?;
        if next < reach {
            return Err(refused("from a wider network into a narrower one"));
        }
        Ok(next)
    }

    /// Reads a body to its end, if it is not longer than `limit` bytes.
    pub(crate) async fn text(&self, answer: Answer, limit: u64) -> Result<Vec<u8>, TransferError> {
        let url = answer.url.clone();
        let mut body = Body::of_answer(answer, None)?;
        body.collect(limit).await?.ok_or_else(|| TransferError::TooLarge { url: shown(&url), limit })
    }
}

impl Answer {
    /// The answer, if it is a good one; else the sentence that says why not.
    pub(crate) async fn accepted(self, ask: &Ask) -> Result<Self, TransferError> {
        let status = self.response.status();
        if status.is_success() { Ok(self) } else { Err(self.refusal(ask).await) }
    }

    /// What a bad answer means. Reads what the server says for it, within a bound.
    pub(crate) async fn refusal(self, ask: &Ask) -> TransferError {
        let (status, url) = (self.response.status(), shown(&self.url));
        let retry_after = retry_after(self.response.headers());
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => return TransferError::NotFound(url),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let at = ask.range.as_ref().map_or(0, |range| range.start);
                return TransferError::PastEnd { name: url, at };
            }
            _ if status.is_redirection() => {
                return TransferError::Redirect { url, why: "without saying where to" };
            }
            _ => {}
        }
        // A store that was redirected to has no business with credentials: its link is bad.
        let elsewhere = self.url.origin() != ask.url.origin();
        let said = self.said().await.map(|said| format!(" ({said})")).unwrap_or_default();
        let given = ask.authorization.is_some() || ask.url.query().is_some();
        match status {
            _ if elsewhere => TransferError::Status { url, status, said, retry_after },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if given => {
                TransferError::Denied { url, status, said }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                TransferError::NeedsCredential { url, status }
            }
            _ => TransferError::Status { url, status, said, retry_after },
        }
    }

    /// The server's own word for a refusal: a code of a few letters, as stores and hubs give it.
    pub(crate) async fn said(self) -> Option<String> {
        if let Some(code) = self.header("x-error-code") {
            return Some(word(code)).filter(|word| !word.is_empty());
        }
        let mut response = self.response;
        let mut text = Vec::new();
        while let Ok(Some(block)) = response.chunk().await {
            text.extend_from_slice(&block);
            if text.len() as u64 > LONGEST_REFUSAL {
                return None;
            }
        }
        let text = String::from_utf8_lossy(&text);
        let (_, code) = text.split_once("<Code>")?;
        Some(word(code.split_once("</Code>")?.0)).filter(|word| !word.is_empty())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok())
    }
}

/// What may be shown of what a server says.
fn word(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(48).collect()
}

fn location(from: &Url, headers: &HeaderMap) -> Option<Url> {
    from.join(headers.get(header::LOCATION)?.to_str().ok()?).ok()
}

/// Seconds only: a date would depend on two clocks that agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        drop(rustls::crypto::ring::default_provider().install_default());
        let to = |text: &str| vec![text.parse().unwrap()];
        let access = Access::default()
            .naming("public.example", to("203.0.113.7"))
            .naming("private.example", to("10.1.2.3"))
            .naming("local.example", to("127.0.0.1"))
            .naming("metadata.example", to("169.254.169.254"))
            .naming("mixed.example", vec!["203.0.113.7".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
        Http::new(true, &access).unwrap()
    }

    #[tokio::test]
    async fn redirects_lead_outwards_or_stay_where_they_are() {
        let http = http();
        let order = ["local.example", "private.example", "public.example"];
        for (from_at, from) in order.iter().enumerate() {
            for (to_at, to) in order.iter().enumerate() {
                let url = |host: &str| Url::parse(&format!("https://{host}/x")).unwrap();
                let lead = http.may_lead(&url(from), &url(to)).await;
                assert_eq!(lead.is_ok(), to_at >= from_at, "{from} to {to}: {lead:?}");
            }
        }
    }

    #[tokio::test]
    async fn redirects_to_where_no_model_comes_from_are_refused() {
        let http = http();
        for (from, to, expected) in [
            ("https://public.example/", "http://public.example/", "from https to http"),
            ("https://public.example/", "http://127.0.0.1/", "from https to http"),
            ("https://public.example/", "https://127.0.0.1/", "narrower"),
            ("https://public.example/", "https://mixed.example/", "narrower"),
            ("https://public.example/", "https://10.0.0.1/", "narrower"),
            ("https://public.example/", "https://[fd00::1]/", "narrower"),
            ("https://public.example/", "https://[::ffff:10.0.0.1]/", "narrower"),
            ("https://public.example/", "https://169.254.169.254/latest/", "no model comes from"),
            ("http://127.0.0.1/", "http://169.254.169.254/latest/", "no model comes from"),
            ("http://127.0.0.1/", "http://10.0.0.1/", "no model comes from"),
            ("https://public.example/", "https://metadata.example/", "no model comes from"),
            ("https://public.example/", "https://u:p@public.example/", "no plain https"),
            ("https://public.example/", "file:///etc/passwd", "no plain https"),
            ("https://public.example/", "ftp://public.example/", "no plain https"),
        ] {
            let error = http.may_lead(&from.parse().unwrap(), &to.parse().unwrap()).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{from} to {to}: {error}");
            assert!(!error.is_transient());
        }
    }

    #[test]
    fn words_of_servers_are_words() {
        assert_eq!(word("Signature<b>DoesNotMatch"), "SignaturebDoesNotMatch");
        assert_eq!(word(&"x".repeat(100)).len(), 48);
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(" 7 "));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT"));
        assert_eq!(retry_after(&headers), None);
    }
}
