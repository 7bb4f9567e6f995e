//! Private documents: exchanged by version, so that a token is used once.

use super::*;

fn raced<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::RecordConflict { .. })), "{result:?}");
}

/// New, replaced, removed: each only from the state that the writer has read.
pub async fn a_record_is_exchanged(home: &dyn Home) {
    let store = home.store();
    assert_eq!(store.record("ca", "root").await.unwrap(), None);
    let first = store.put_record("ca", "root", None, b"one".to_vec()).await.unwrap();
    raced(store.put_record("ca", "root", None, b"two".to_vec()).await);
    let second = store.put_record("ca", "root", Some(&first), b"two".to_vec()).await.unwrap();
    raced(store.put_record("ca", "root", Some(&first), b"three".to_vec()).await);
    raced(store.delete_record("ca", "root", &first).await);
    assert_eq!(store.record("ca", "root").await.unwrap().unwrap().value, b"two");
    store.delete_record("ca", "root", &second).await.unwrap();
    assert_eq!(store.record("ca", "root").await.unwrap(), None);
}

/// Two that read the same record and both want to remove it: one has it.
pub async fn one_of_two_takes_it(home: &dyn Home) {
    let store = home.store();
    let version = store.put_record("token", "t", None, b"x".to_vec()).await.unwrap();
    let (one, two) = tokio::join!(
        store.delete_record("token", "t", &version),
        store.delete_record("token", "t", &version)
    );
    assert_ne!(one.is_ok(), two.is_ok());
}

/// Collections don't see each other, even if one's name starts with the other's.
pub async fn collections_are_apart(home: &dyn Home) {
    let store = home.store();
    for (collection, key) in [("token", "b"), ("token", "a"), ("tokens", "c"), ("ca", "z")] {
        store.put_record(collection, key, None, key.as_bytes().to_vec()).await.unwrap();
    }
    let keys: Vec<String> =
        store.records("token").await.unwrap().into_iter().map(|record| record.key).collect();
    assert_eq!(keys, ["a", "b"]);
    assert!(!format!("{:?}", store.records("token").await.unwrap()).contains("value"));
}
