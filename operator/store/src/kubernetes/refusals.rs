//! What the API server's refusals say, in the words of a store.

use kube::core::Status;

use crate::error::OwnedField;

/// Fields of other managers that an apply would change.
pub(super) fn disputed_fields(status: &Status) -> Vec<OwnedField> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .filter(|cause| cause.reason == "FieldManagerConflict")
        .map(|cause| OwnedField {
            path: cause.field.trim_start_matches('.').to_owned(),
            // `conflict with "NAME" using …`, and NAME is anybody's choice.
            manager: cause.message.split('"').nth(1).unwrap_or(&cause.message).to_owned(),
        })
        .collect()
}

/// Whether something of this name exists, rather than being another version than was read.
pub(super) fn is_already_there(status: &Status) -> bool {
    status.reason == "AlreadyExists"
}

/// Whether it is the namespace that was not found.
pub(super) fn is_about_a_namespace(status: &Status) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

/// Whether an internal error is really about the manifest.
pub(super) fn is_a_bad_manifest(message: &str) -> bool {
    message.contains("failed to create typed patch object")
        || message.contains("field not declared in schema")
}

/// One sentence for each thing that is wrong.
pub(super) fn problems(status: &Status) -> Vec<String> {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice());
    let said: Vec<String> = causes
        .unwrap_or_default()
        .iter()
        .map(|cause| {
            if cause.field.is_empty() {
                cause.message.clone()
            } else {
                format!("{}: {}", cause.field, cause.message)
            }
        })
        .collect();
    if said.is_empty() { vec![status.message.clone()] } else { said }
}
