//! Signatures of requests to S3, version 4, verified by the published rules and by nobody's client.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::Keys;
use crate::listen::Asked;

/// Everything but unreserved characters is escaped in a query that is signed.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(crate) fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("keys of any length are good");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// Whether a request's URL is signed by who holds the keys; else the code that S3 refuses it with.
pub(crate) fn verify(asked: &Asked, keys: &Keys, now: Timestamp) -> Result<(), &'static str> {
    let Some((access_key, secret_key, session)) = &keys.s3 else { return Ok(()) };
    let need = |name: &str| asked.parameter(name).ok_or("AccessDenied");
    let (signature, date) = (need("X-Amz-Signature")?, need("X-Amz-Date")?);
    let (credential, signed_headers) = (need("X-Amz-Credential")?, need("X-Amz-SignedHeaders")?);
    let scope: Vec<&str> = credential.split('/').collect();
    let [key, day, region, "s3", "aws4_request"] = scope.as_slice() else {
        return Err("AuthorizationQueryParametersError");
    };
    if key != access_key {
        return Err("InvalidAccessKeyId");
    }
    if asked.parameter("X-Amz-Security-Token") != *session {
        return Err("InvalidToken");
    }
    let lives: i64 = need("X-Amz-Expires")?.parse().map_err(|_| "AuthorizationQueryParametersError")?;
    let signed_at = DateTime::strptime("%Y%m%dT%H%M%SZ", &date)
        .and_then(|at| at.to_zoned(TimeZone::UTC))
        .map_err(|_| "AuthorizationQueryParametersError")?;
    let age = now.as_second() - signed_at.timestamp().as_second();
    // A quarter of an hour is what S3 allows clocks to differ.
    if age > lives || age < -900 {
        return Err("ExpiredToken");
    }
    let expected =
        signature_of(asked, secret_key, &date, day, region, &signed_headers).ok_or("AccessDenied")?;
    if expected == signature { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

/// The region that a request was signed for.
pub(crate) fn region(asked: &Asked) -> Option<String> {
    asked.parameter("X-Amz-Credential")?.split('/').nth(2).map(str::to_owned)
}

fn signature_of(
    asked: &Asked,
    secret_key: &str,
    date: &str,
    day: &str,
    region: &str,
    signed_headers: &str,
) -> Option<String> {
    let escaped = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
    let pairs = asked.query().into_iter().filter(|(key, _)| key != "X-Amz-Signature");
    let mut pairs: Vec<String> = pairs.map(|(k, v)| format!("{}={}", escaped(&k), escaped(&v))).collect();
    pairs.sort();
    let mut headers = String::new();
    for name in signed_headers.split(';') {
        headers.push_str(&format!("{name}:{}\n", asked.header(name)?.trim()));
    }
    let path = asked.path.split('/').map(escaped).collect::<Vec<_>>().join("/");
    let canonical = format!(
        "{}\n{path}\n{}\n{headers}\n{signed_headers}\nUNSIGNED-PAYLOAD",
        asked.parts.method,
        pairs.join("&")
    );
    let hashed = hex::encode(Sha256::digest(canonical));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{region}/s3/aws4_request\n{hashed}");
    let mut key = hmac(format!("AWS4{secret_key}").as_bytes(), day.as_bytes());
    for part in [region, "s3", "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    Some(hex::encode(hmac(&key, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::Request;

    use super::*;
    use crate::Door;

    const EXAMPLE: &str = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
        &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
        &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

    fn verified(url: &str, secret_key: &str, seconds_later: i64) -> Result<(), &'static str> {
        let request = Request::get(url).header("host", "examplebucket.s3.amazonaws.com").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let asked = Asked { door: Door::S3, path, counter: Arc::default(), parts };
        let s3 = Some(("AKIAIOSFODNN7EXAMPLE".to_owned(), secret_key.to_owned(), None));
        let signed_at: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let now = Timestamp::from_second(signed_at.as_second() + seconds_later).unwrap();
        verify(&asked, &Keys { s3, ..Keys::default() }, now)
    }

    /// The example of a signed URL in Amazon's documentation of the query parameters.
    #[test]
    fn the_published_example_is_good_and_its_neighbours_are_not() {
        let key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert_eq!(verified(EXAMPLE, key, 60), Ok(()));
        assert_eq!(verified(EXAMPLE, "wrong", 60), Err("SignatureDoesNotMatch"));
        assert_eq!(verified(EXAMPLE, key, 86_401), Err("ExpiredToken"));
        assert_eq!(verified(EXAMPLE, key, -3600), Err("ExpiredToken"));
        let other = EXAMPLE.replace("test.txt", "best.txt");
        assert_eq!(verified(&other, key, 60), Err("SignatureDoesNotMatch"));
        let longer = EXAMPLE.replace("86400", "96400");
        assert_eq!(verified(&longer, key, 60), Err("SignatureDoesNotMatch"));
        assert_eq!(verified(&EXAMPLE.replace("AKIA", "BKIA"), key, 60), Err("InvalidAccessKeyId"));
        assert_eq!(verified(&format!("{EXAMPLE}&X-Amz-Security-Token=x"), key, 60), Err("InvalidToken"));
        assert_eq!(verified("/test.txt", key, 60), Err("AccessDenied"));
    }
}
