//! Weights from a web server that misbehaves.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod server;

use axum::http::StatusCode;
use server::{Answer, Server};
use sha2::{Digest, Sha256};
use tandem_sources::{ResolvedFile, Source, TransferError};
use tandem_weights::{FetchError, Store};

const NAME: &str = "tiny-Q8_0.gguf";

fn bytes() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn source(server: &Server) -> Source {
    server.url.parse().unwrap()
}

async fn fetched(server: &Server, file: &ResolvedFile) -> (Result<Vec<u8>, FetchError>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let result = store.fetch(&source(server), file, &server.access(), &|_| {}).await;
    let whole = result.map(|path| std::fs::read(path).unwrap());
    let partial = std::fs::read_dir(dir.path().join("partial")).unwrap();
    (whole, partial.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
}

fn good(server: &Server) -> ResolvedFile {
    let bytes = bytes();
    let sha256 = <[u8; 32]>::from(Sha256::digest(&bytes)).into();
    let file = ResolvedFile { name: NAME.to_owned(), sha256, bytes: bytes.len() as u64 };
    server.on(&format!("/{NAME}"), [Answer::Bytes(bytes)]);
    file
}

#[tokio::test]
async fn a_good_server_gives_whole_files() {
    let server = Server::start().await;
    let file = good(&server);
    assert_eq!((file.name.as_str(), file.bytes), (NAME, 1_200_000));
    let (whole, partial) = fetched(&server, &file).await;
    assert_eq!(whole.unwrap(), bytes());
    assert!(partial.is_empty());
}

#[tokio::test]
async fn wrong_bytes_never_get_further_than_the_hash() {
    let server = Server::start().await;
    let file = good(&server);
    let mut wrong = bytes();
    wrong[777_777] ^= 1;
    server.on(&format!("/{NAME}"), [Answer::Bytes(wrong)]);
    let (whole, partial) = fetched(&server, &file).await;
    assert!(matches!(whole, Err(FetchError::WrongDigest { .. })));
    assert!(partial.is_empty());
}

#[tokio::test]
async fn a_cut_transfer_starts_again() {
    let server = Server::start().await;
    let file = good(&server);
    let cut = [Answer::Cut(bytes(), 700_000), Answer::Cut(bytes(), 10), Answer::Bytes(bytes())];
    server.on(&format!("/{NAME}"), cut);
    assert_eq!(fetched(&server, &file).await.0.unwrap(), bytes());
}

#[tokio::test]
async fn a_stalled_transfer_ends_by_itself_and_retries_are_counted() {
    let server = Server::start().await;
    let file = good(&server);
    server.on(&format!("/{NAME}"), [Answer::Stall(bytes())]);
    let (whole, partial) = fetched(&server, &file).await;
    assert!(matches!(whole, Err(FetchError::Transfer(TransferError::Http { .. }))));
    assert!(partial.is_empty());
    assert_eq!(server.asked(&format!("/{NAME}")), 4);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_and_one_without_the_file_is_not() {
    let server = Server::start().await;
    let file = good(&server);
    let path = format!("/{NAME}");
    server.on(&path, [Answer::Status(StatusCode::INTERNAL_SERVER_ERROR), Answer::Bytes(bytes())]);
    assert!(fetched(&server, &file).await.0.is_ok());
    server.on(&path, [Answer::Status(StatusCode::SERVICE_UNAVAILABLE)]);
    let (whole, _) = fetched(&server, &file).await;
    assert!(matches!(whole, Err(FetchError::Transfer(TransferError::Status { .. }))));
    assert_eq!(server.asked(&path), 4);
    server.on(&path, [Answer::Status(StatusCode::NOT_FOUND)]);
    let (whole, _) = fetched(&server, &file).await;
    assert!(matches!(whole, Err(FetchError::Transfer(TransferError::NotFound(_)))));
    assert_eq!(server.asked(&path), 1);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::start().await;
    let file = good(&server);
    server.on(&format!("/{NAME}"), [Answer::Endless]);
    assert!(matches!(fetched(&server, &file).await.0, Err(FetchError::WrongLength { .. })));
    server.on(&format!("/{NAME}"), [Answer::Bytes(vec![0; 1_200_001])]);
    assert!(matches!(fetched(&server, &file).await.0, Err(FetchError::WrongLength { .. })));
}
