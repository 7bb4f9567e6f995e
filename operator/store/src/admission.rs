//! The API types' own rules, as the store applies them to every write.

use serde_json::Value;

use crate::error::StoreError;

/// The object with its defaults, or every sentence about what is wrong with it.
pub(crate) fn admit(object: &Value, old: Option<&Value>) -> Result<Value, StoreError> {
    tandem_crds::admit(object, old).map_err(|violations| StoreError::Invalid {
        problems: violations.iter().map(ToString::to_string).collect(),
    })
}

/// Refuses fields that nobody knows, where pruning would drop them in silence.
pub(crate) fn check_known(stated: &Value) -> Result<(), StoreError> {
    let unknown = tandem_crds::manifest::unknown_fields(stated);
    if unknown.is_empty() {
        return Ok(());
    }
    Err(StoreError::Invalid { problems: unknown.iter().map(ToString::to_string).collect() })
}
