//! A conversation, checked and made plain: what templates expect.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::Fields;

/// `messages` as JSON, each with a known role and its content as one string.
pub(super) fn parse(fields: &mut Fields) -> Result<String, ApiError> {
    let messages = fields.array("messages")?.filter(|messages| !messages.is_empty()).ok_or_else(|| {
        ApiError::field("messages", "`messages` is missing or empty: give at least one message")
    })?;
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| plain(index, message))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Value::Array(messages).to_string())
}

fn plain(index: usize, message: Value) -> Result<Value, ApiError> {
    let at = format!("messages[{index}]");
    let Value::Object(mut message) = message else {
        return Err(ApiError::field(&at, format!("`{at}` must be an object with `role` and `content`")));
    };
    let role = role(&at, &message)?;
    // Templates know no developer; the role is the newer name for the system's.
    message.insert("role".to_owned(), if role == "developer" { "system" } else { role }.into());
    let content = message.get_mut("content").map(Value::take).unwrap_or_default();
    let silent = role == "assistant" && content.is_null();
    let content = if silent { Value::Null } else { Value::String(text(&at, content)?) };
    message.insert("content".to_owned(), content);
    if let Some(calls) = message.get("tool_calls").filter(|calls| !calls.is_null())
        && !calls
            .as_array()
            .is_some_and(|calls| calls.iter().all(|call| call["function"]["name"].is_string()))
    {
        let at = format!("{at}.tool_calls");
        return Err(ApiError::field(&at, format!("`{at}` must be an array of calls with `function.name`")));
    }
    Ok(Value::Object(message))
}

fn role(at: &str, message: &Map<String, Value>) -> Result<&'static str, ApiError> {
    const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
    let given = message.get("role").and_then(Value::as_str);
    ROLES.into_iter().find(|role| given == Some(role)).ok_or_else(|| {
        ApiError::field(format!("{at}.role"), format!("`{at}.role` must be one of {}", ROLES.join(", ")))
    })
}

fn text(at: &str, content: Value) -> Result<String, ApiError> {
    let at = format!("{at}.content");
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            parts.into_iter().enumerate().map(|(index, part)| part_text(&at, index, part)).collect()
        }
        _ => Err(ApiError::field(&at, format!("`{at}` must be a string or an array of text parts"))),
    }
}

fn part_text(at: &str, index: usize, mut part: Value) -> Result<String, ApiError> {
    let at = format!("{at}[{index}]");
    let kind = part.get("type").and_then(Value::as_str).map(|kind| kind.chars().take(40).collect::<String>());
    match (kind.as_deref(), part.get_mut("text").map(Value::take)) {
        (Some("text"), Some(Value::String(text))) => Ok(text),
        (Some("text"), _) => Err(ApiError::field(&at, format!("`{at}.text` must be a string"))),
        (Some(other), _) => Err(ApiError::field(
            &at,
            format!("`{at}` is of type `{other}`: this model reads text only, so send `text` parts"),
        )),
        (None, _) => Err(ApiError::field(&at, format!("`{at}` must be an object with `type` and `text`"))),
    }
}
