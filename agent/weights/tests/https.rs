//! Weights from a web server that misbehaves.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod server;

use axum::http::StatusCode;
use server::{Answer, Server, sums};
use tandem_sources::{
    Access, ListedFile, ResolveError, Resolved, ResolvedFile, Source, TransferError, resolve,
};
use tandem_weights::{FetchError, Store};

const NAME: &str = "tiny-Q8_0.gguf";

fn bytes() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn source(server: &Server) -> Source {
    server.url.parse().unwrap()
}

async fn resolved(server: &Server) -> Result<Resolved, ResolveError> {
    resolve(&source(server), "Q8_0", &[], &server.access()).await
}

async fn fetched(server: &Server, file: &ResolvedFile) -> (Result<Vec<u8>, FetchError>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let result = store.fetch(&source(server), file, &server.access(), &|_| {}).await;
    let whole = result.map(|path| std::fs::read(path).unwrap());
    let partial = std::fs::read_dir(dir.path().join("partial")).unwrap();
    (whole, partial.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
}

async fn good(server: &Server) -> ResolvedFile {
    server.model(NAME, &bytes());
    resolved(server).await.unwrap().files.remove(0)
}

#[tokio::test]
async fn a_good_server_gives_files_hashes_and_headers() {
    let server = Server::start().await;
    let file = good(&server).await;
    assert_eq!((file.name.as_str(), file.bytes), (NAME, 1_200_000));
    assert_eq!(resolved(&server).await.unwrap().headers, [bytes()]);
    let (whole, partial) = fetched(&server, &file).await;
    assert_eq!(whole.unwrap(), bytes());
    assert!(partial.is_empty());
}

#[tokio::test]
async fn a_list_in_the_manifest_needs_no_sums() {
    let server = Server::start().await;
    let file = good(&server).await;
    server.on("/SHA256SUMS", [Answer::Status(StatusCode::NOT_FOUND)]);
    let error = resolved(&server).await.unwrap_err();
    assert!(matches!(error, ResolveError::NoSums(_)), "{error}");
    let listed = [ListedFile { name: NAME.to_owned(), sha256: file.sha256 }];
    let resolved = resolve(&source(&server), "whatever", &listed, &server.access()).await.unwrap();
    assert_eq!(resolved.files, [file]);
}

#[tokio::test]
async fn wrong_bytes_never_get_further_than_the_hash() {
    let server = Server::start().await;
    let file = good(&server).await;
    let mut wrong = bytes();
    wrong[777_777] ^= 1;
    server.on(&format!("/{NAME}"), [Answer::Bytes(wrong)]);
    assert!(matches!(resolved(&server).await, Err(ResolveError::WrongDigest { .. })));
    let (whole, partial) = fetched(&server, &file).await;
    assert!(matches!(whole, Err(FetchError::WrongDigest { .. })));
    assert!(partial.is_empty());
}

#[tokio::test]
async fn a_cut_transfer_starts_again() {
    let server = Server::start().await;
    let file = good(&server).await;
    let cut = [Answer::Cut(bytes(), 700_000), Answer::Cut(bytes(), 10), Answer::Bytes(bytes())];
    server.on(&format!("/{NAME}"), cut.clone());
    assert!(resolved(&server).await.is_ok());
    server.on(&format!("/{NAME}"), cut);
    assert_eq!(fetched(&server, &file).await.0.unwrap(), bytes());
}

#[tokio::test]
async fn a_stalled_transfer_ends_by_itself_and_retries_are_counted() {
    let server = Server::start().await;
    let file = good(&server).await;
    server.on(&format!("/{NAME}"), [Answer::Stall(bytes())]);
    let (whole, partial) = fetched(&server, &file).await;
    assert!(matches!(whole, Err(FetchError::Transfer(TransferError::Http { .. }))));
    assert!(partial.is_empty());
    assert_eq!(server.asked(&format!("/{NAME}")), 4);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_and_one_without_the_file_is_not() {
    let server = Server::start().await;
    let file = good(&server).await;
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
async fn redirects_stay_on_the_server() {
    let server = Server::start().await;
    let elsewhere = Server::start().await;
    let file = good(&server).await;
    elsewhere.model(NAME, &bytes());
    server.on("/moved.gguf", [Answer::Bytes(bytes())]);
    server.on(&format!("/{NAME}"), [Answer::Redirect("/moved.gguf".to_owned())]);
    assert!(fetched(&server, &file).await.0.is_ok());
    let plain = server.url.replace("https", "http");
    for to in
        [format!("{}{NAME}", elsewhere.url), format!("{plain}{NAME}"), "https://169.254.169.254/".into()]
    {
        server.on(&format!("/{NAME}"), [Answer::Redirect(to)]);
        let (whole, _) = fetched(&server, &file).await;
        assert!(matches!(whole, Err(FetchError::Transfer(TransferError::Redirect { .. }))));
    }
    assert_eq!(elsewhere.asked(&format!("/{NAME}")), 0);
    server.on(&format!("/{NAME}"), [Answer::Redirect(format!("/{NAME}"))]);
    assert!(fetched(&server, &file).await.0.is_err());
    assert_eq!(server.asked(&format!("/{NAME}")), 6);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::start().await;
    let file = good(&server).await;
    server.on(&format!("/{NAME}"), [Answer::Endless]);
    assert!(matches!(fetched(&server, &file).await.0, Err(FetchError::WrongLength { .. })));
    server.on(&format!("/{NAME}"), [Answer::Bytes(vec![0; 1_200_001])]);
    assert!(matches!(fetched(&server, &file).await.0, Err(FetchError::WrongLength { .. })));
    server.on("/SHA256SUMS", [Answer::Endless]);
    assert!(matches!(resolved(&server).await, Err(ResolveError::HugeSums(_))));
}

#[tokio::test]
async fn shards_keep_their_order_and_other_roots_are_not_trusted() {
    let server = Server::start().await;
    let (one, two): (&[u8], &[u8]) = (b"one", b"two");
    let names = ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"];
    server.on("/SHA256SUMS", [Answer::Bytes(sums(&[(names[1], two), (names[0], one)]))]);
    server.on(&format!("/{}", names[0]), [Answer::Bytes(one.to_vec())]);
    server.on(&format!("/{}", names[1]), [Answer::Bytes(two.to_vec())]);
    let model = resolved(&server).await.unwrap();
    assert_eq!(model.headers, [one, two]);
    assert!(model.files.iter().map(|file| file.name.as_str()).eq(names));
    let stranger = Access::default().trusting(Server::start().await.ca_pem.as_bytes()).unwrap();
    let error = resolve(&source(&server), "Q8_0", &[], &stranger.retrying(0, Default::default())).await;
    assert!(matches!(error, Err(ResolveError::Transfer(TransferError::Http { .. }))));
    assert!(Access::default().trusting(b"no certificate").is_err());
}

#[tokio::test]
async fn nobody_there_is_an_error_and_no_wait() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = format!("http://{closed}/").parse().unwrap();
    let access = Access::default().retrying(1, std::time::Duration::from_millis(1));
    let error = resolve(&source, "Q8_0", &[], &access).await.unwrap_err();
    assert!(matches!(error, ResolveError::Transfer(TransferError::Http { .. })), "{error:?}");
}
