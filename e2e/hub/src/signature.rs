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
