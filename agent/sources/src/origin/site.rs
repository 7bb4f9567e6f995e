//! A folder on a web server.

use std::ops::Range;

use reqwest::Url;
use reqwest::header::HeaderValue;

use super::{authorization, below};
use crate::http::{Ask, Http};
use crate::{Body, Secret, TransferError};

pub(super) struct Site {
    http: Http,
    base: Url,
    authorization: Option<HeaderValue>,
}

impl Site {
    pub(super) fn new(http: Http, base: Url, credential: Option<&Secret>) -> Result<Self, TransferError> {
        Ok(Self { http, base, authorization: credential.map(authorization).transpose()? })
    }

    pub(super) async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        let url = below(&self.base, name.split('/'));
        let ask = Ask { range, authorization: self.authorization.clone(), ..Ask::new(url) };
        let answer = self.http.get(&ask).await?.accepted(&ask).await?;
        Body::of_answer(answer, ask.range.as_ref())
    }
}
