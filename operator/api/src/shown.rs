//! How messages that carry secrets are shown: without them.

use std::fmt;

use crate::{CreatedKey, Credential, ModelsPull, SetSecretRequest};

/// Stands for a value, and tells no more than whether there is one.
struct Hidden<'a>(&'a str);

impl fmt::Debug for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "…" })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deployment, secret } = self;
        f.debug_struct("Credential").field("deployment", deployment).field("secret", &Hidden(secret)).finish()
    }
}

impl fmt::Debug for ModelsPull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, quant, secret_name, secret_key, namespace, files, secret } = self;
        f.debug_struct("ModelsPull")
            .field("source", source)
            .field("quant", quant)
            .field("secret_name", secret_name)
            .field("secret_key", secret_key)
            .field("namespace", namespace)
            .field("files", files)
            .field("secret", &Hidden(secret))
            .finish()
    }
}

impl fmt::Debug for SetSecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, values } = self;
        let keys: Vec<&String> = values.keys().collect();
        f.debug_struct("SetSecretRequest")
            .field("namespace", namespace)
            .field("name", name)
            .field("keys", &keys)
            .finish()
    }
}

impl fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, text } = self;
        f.debug_struct("CreatedKey").field("key", key).field("text", &Hidden(text)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelsRequest, OperatorMessage, Supply, models_request, operator_message};

    #[test]
    fn what_is_printed_has_no_values() {
        let value = || "s3cr3t".to_owned();
        let credential = Credential { deployment: "llm/kimi".to_owned(), secret: value() };
        let supply = Supply { credentials: vec![credential], ..Supply::default() };
        let message = OperatorMessage { message: Some(operator_message::Message::Supply(supply)) };
        let pull = ModelsPull { secret: value(), secret_name: "hub".to_owned(), ..ModelsPull::default() };
        let pull = ModelsRequest { ask: Some(models_request::Ask::Pull(pull)), ..ModelsRequest::default() };
        let set = SetSecretRequest {
            values: [("token".to_owned(), value())].into_iter().collect(),
            ..SetSecretRequest::default()
        };
        let created = CreatedKey { text: value(), ..CreatedKey::default() };
        let said = format!("{message:?} {pull:?} {set:?} {created:?}");
        assert!(!said.contains("s3cr3t"), "{said}");
        assert!(said.contains("llm/kimi") && said.contains("hub") && said.contains("token"), "{said}");
    }
}
