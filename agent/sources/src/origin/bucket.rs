//! A bucket of Amazon's S3, or of a store that speaks like it. Requests are signed in their URLs, each for itself.

use std::ops::Range;
use std::time::Duration;

use reqwest::Url;
use rusty_s3::actions::{GetObject, S3Action};
use rusty_s3::{Credentials, UrlStyle};

use crate::access::S3;
use crate::error::shown;
use crate::http::{Ask, Http};
use crate::{Body, Secret, TransferError};

/// How long a signature is good for: for the request that is made with it at once, whatever the clocks.
const SIGNED_FOR: Duration = Duration::from_secs(600);

/// Where a bucket is.
pub(super) struct Address {
    bucket: rusty_s3::Bucket,
}

impl Address {
    /// `mirror` stands for the store that `s3` names, which is Amazon's where it names none.
    pub(super) fn new(name: &str, mirror: Option<&Url>, s3: &S3) -> Result<Self, TransferError> {
        let own = mirror.or(s3.endpoint.as_ref());
        // Names with dots are not below the wildcard of Amazon's certificate; other stores know the path style at least.
        let style = match own {
            None if !name.contains('.') => UrlStyle::VirtualHost,
            _ => UrlStyle::Path,
        };
        let amazon = || Url::parse(&format!("https://s3.{}.amazonaws.com/", s3.region));
        let endpoint = own.cloned().map_or_else(amazon, Ok);
        let bucket = endpoint.ok().and_then(|endpoint| {
            rusty_s3::Bucket::new(endpoint, style, name.to_owned(), s3.region.clone()).ok()
        });
        bucket.map(|bucket| Self { bucket }).ok_or_else(|| TransferError::NotFound(format!("s3://{name}")))
    }

    pub(super) fn url(&self) -> &Url {
        self.bucket.base_url()
    }
}

pub(super) struct Bucket {
    http: Http,
    address: Address,
    prefix: String,
    credentials: Option<Credentials>,
}

impl Bucket {
    /// `credential` is `ACCESS_KEY:SECRET_KEY` or `ACCESS_KEY:SECRET_KEY:SESSION_TOKEN`; without, objects are asked for unsigned.
    pub(super) fn new(
        http: Http,
        address: Address,
        prefix: &str,
        credential: Option<&Secret>,
    ) -> Result<Self, TransferError> {
        let parse = |secret: &Secret| {
            let mut parts = secret.reveal().splitn(3, ':');
            match (parts.next(), parts.next(), parts.next()) {
                (Some(key), Some(secret), None) => Ok(Credentials::new(key, secret)),
                (Some(key), Some(secret), Some(token)) => Ok(Credentials::new_with_token(key, secret, token)),
                _ => Err(TransferError::BadCredential("ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]")),
            }
        };
        let credentials = credential.map(parse).transpose()?;
        Ok(Self { http, address, prefix: prefix.to_owned(), credentials })
    }

    pub(super) async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        let bucket = &self.address.bucket;
        let key = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        let url = GetObject::new(bucket, self.credentials.as_ref(), &key).sign(SIGNED_FOR);
        let ask = Ask { range, ..Ask::new(url) };
        let answer = self.http.get(&ask).await?;
        let status = answer.response.status();
        if status.is_success() {
            return Body::of_answer(answer, ask.range.as_ref());
        }
        let region = answer.header("x-amz-bucket-region").map(str::to_owned);
        let moved = status.is_redirection() || (status.as_u16() == 400 && region.is_some());
        if moved || region.as_ref().is_some_and(|region| region != bucket.region()) {
            let fine = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
            let found = region.map(|region| region.chars().filter(fine).take(64).collect::<String>());
            return Err(TransferError::WrongRegion {
                bucket: bucket.name().to_owned(),
                asked: bucket.region().to_owned(),
                found: found.map(|region| format!(", but in {region}")).unwrap_or_default(),
            });
        }
        match answer.refusal(&ask).await {
            TransferError::NotFound(_) => Err(TransferError::NotFound(shown(&ask.url))),
            other => Err(other),
        }
    }
}
